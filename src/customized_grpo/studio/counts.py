"""How many runs a comparison has: those that are planned, begun, or joined from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from customized_grpo.errors import UserError
from customized_grpo.files import read_json
from customized_grpo.links import leads_out
from customized_grpo.studio.library import PLAN, RESULTS, Comparison

RunKey = tuple[str, int]
"""Arm and seed."""


@dataclass(frozen=True)
class Counts:
    """Runs of a comparison.

    Attributes:
        runs: All of them.
        elsewhere: Those that have finished elsewhere and have no folder here.
    """

    runs: int
    elsewhere: int


def counts_of(comparison: Comparison) -> Counts:
    """Return how many runs a comparison has; a file that cannot be read has none."""
    planned = _planned(comparison.folder / PLAN, _stamp(comparison.folder / PLAN))
    finished = _finished(comparison.folder / RESULTS, _stamp(comparison.folder / RESULTS))
    runs = comparison.folder / "runs"
    elsewhere = [(arm, seed) for arm, seed in finished if not (runs / arm / f"seed_{seed}").is_dir()]
    return Counts(len(planned | finished), len(elsewhere))


def _stamp(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return -1


# by its age, because the list is asked for every second and results may have megabytes
@lru_cache(maxsize=256)
def _planned(file: Path, stamp: int) -> frozenset[RunKey]:
    content = _content(file)
    arms = content.get("arms")
    seeds = content.get("seeds")
    found = set()
    for arm in arms if isinstance(arms, list) else ():
        for seed in seeds if isinstance(seeds, list) else ():
            found |= _key(arm.get("name") if isinstance(arm, dict) else None, seed)
    return frozenset(found)


@lru_cache(maxsize=256)
def _finished(file: Path, stamp: int) -> frozenset[RunKey]:
    runs = _content(file).get("runs")
    found = set()
    for run in runs if isinstance(runs, list) else ():
        if isinstance(run, dict) and run.get("state") == "finished":
            found |= _key(run.get("arm"), run.get("seed"))
    return frozenset(found)


def _content(file: Path) -> dict[str, Any]:
    if not file.is_file() or leads_out(file, file.parent):
        return {}
    try:
        content = read_json(file)
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def _key(arm: object, seed: object) -> set[RunKey]:
    """Return the key of a run; none of what is no name and number, as in a folder from anybody."""
    return {(arm, seed)} if isinstance(arm, str) and isinstance(seed, int) else set()
