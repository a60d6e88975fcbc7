"""How to repeat a comparison from its page alone: commit, versions, the files to write, and the commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from customized_grpo.config.yaml_text import write_yaml

RECIPE = "recipe.yaml"
ARMS = "arms.yaml"
OUT = "repeated"
"""Names in the commands of the files and the folder that a reader makes."""

ARM_KEYS = ("name", "label", "role", "note", "control", "overrides")


@dataclass(frozen=True)
class Repeat:
    """How to repeat a comparison.

    Attributes:
        commit: The commit, whole; None when it is not known.
        is_modified: Whether there were changes beside the commit.
        commands: What to call, one for each row of seeds without a gap.
        arms: Content of the file of arms. It has what --arms, --only and --calibration chose.
        recipe: Content of the recipe, resolved.
        needs_recipe: Whether the recipe is no preset, so that the commands name a file for it.
        weights: Files of calibrated weights that arms name.
        joined: In words, what --also added; empty without it.
    """

    commit: str | None
    is_modified: bool
    commands: Sequence[str]
    arms: str
    recipe: str
    needs_recipe: bool
    weights: Sequence[str]
    joined: Sequence[str]


def read_repeat(results: Mapping[str, Any]) -> Repeat:
    """Return how to repeat the comparison of a results.json.

    The commands train the runs that were joined from elsewhere too.
    """
    recipe = results.get("recipe") or results["name"]
    # a path of the machine that compared: the reader writes the file anew, from the page
    needs_recipe = recipe.endswith((".yaml", ".yml")) or "/" in recipe
    arms = [arm for arm in results["arms"] if arm["role"] != "base"]
    git = (results.get("versions") or {}).get("git") or {}
    # the resolved recipe has the settings already
    words = [RECIPE] if needs_recipe else [recipe, *(results.get("overrides") or ())]
    return Repeat(
        commit=git.get("commit"),
        is_modified=bool(git.get("modified")),
        commands=[shlex.join(command) for command in _commands(results, words)],
        arms=write_yaml({"arms": [_arm(arm) for arm in arms]}),
        recipe=write_yaml(dict(results["config"])),
        needs_recipe=needs_recipe,
        weights=_weights(arms),
        joined=[_joined(source) for source in results.get("joined") or ()],
    )


def _commands(results: Mapping[str, Any], recipe: Sequence[str]) -> list[list[str]]:
    """Return the words of the commands; seeds and threads are given even where they are today's default."""
    threads = results.get("threads_per_run")
    options = [] if threads is None else ["--threads", str(threads)]
    commands = []
    for seeds in _without_gaps(results["seeds"]):
        row = ["--first-seed", str(seeds[0]), "--seeds", str(len(seeds))]
        commands.append(["cgrpo", "compare", *recipe, "--arms", ARMS, *row, *options, "--out", OUT])
    return commands


def _without_gaps(seeds: Sequence[int]) -> list[list[int]]:
    """Return the seeds in as few rows of consecutive numbers as there are."""
    rows: list[list[int]] = []
    for seed in sorted(seeds):
        if rows and seed == rows[-1][-1] + 1:
            rows[-1].append(seed)
        else:
            rows.append([seed])
    return rows


def _arm(arm: Mapping[str, Any]) -> dict[str, Any]:
    """Return an arm as a file of arms has it."""
    return {key: arm[key] for key in ARM_KEYS if arm.get(key) is not None}


def _weights(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    # files of the machine that compared: the page can name them, and does not hold them
    paths = [(arm.get("overrides") or {}).get("schedule.path") for arm in arms]
    return sorted({str(path) for path in paths if path is not None})


def _joined(source: Mapping[str, Any]) -> str:
    git = (source.get("versions") or {}).get("git") or {}
    by = f" by commit {git['commit']}" if git.get("commit") else ""
    return f"{source['runs']} runs{by}"
