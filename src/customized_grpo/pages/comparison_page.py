"""The page of a comparison: one HTML file with every arm, interval and definition."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from customized_grpo.pages import comparison_tables as tables
from customized_grpo.pages.comparison_curves import curves, strips
from customized_grpo.pages.comparison_data import ComparisonData, read_comparison
from customized_grpo.pages.comparison_head import read_head
from customized_grpo.pages.comparison_images import arm_images
from customized_grpo.pages.comparison_plane import pareto
from customized_grpo.pages.comparison_repeat import read_repeat
from customized_grpo.pages.decision_figures import decision_section
from customized_grpo.pages.page import render, write_page
from customized_grpo.pages.plots.numbers import interval_text, number
from customized_grpo.pages.votes import vote_rows
from customized_grpo.reporting.progress import duration

ROLES = {
    "front": "Front",
    "method": "Method",
    "control": "Control",
    "rival": "Rival",
}
"""Names of the roles of arms on the page."""


def write_comparison_page(
    results: Mapping[str, Any], path: Path, folders: Mapping[tuple[str, int], Path] | None = None
) -> Path:
    """Write the page of a comparison, finished or not, and return its path.

    Args:
        results: The content of results.json.
        path: The HTML file; an older one is replaced.
        folders: Run folder by arm and seed, for the images; without it the page has none.

    Raises:
        UserError: The results have another format.
    """
    return write_page(path, render_comparison_page(results, folders))


def render_comparison_page(
    results: Mapping[str, Any], folders: Mapping[tuple[str, int], Path] | None = None
) -> str:
    """Return the page of a comparison; the same results give the same page.

    Args:
        results: The content of results.json.
        folders: Run folder by arm and seed, for the images; without it the page has none.

    Raises:
        UserError: The results have another format.
    """
    data = read_comparison(results)
    return render(
        "comparison.html.j2",
        data=data,
        state=_state(data),
        head=read_head(data),
        roles=ROLES,
        facts=_facts(data),
        pareto=pareto(data),
        images=arm_images(data, folders or {}),
        table=tables.arm_table(data),
        controls=tables.control_rows(data),
        curves=curves(data),
        strips=strips(data),
        quadrants=tables.quadrant_rows(data),
        hypervolume=_hypervolume(data),
        gains=tables.gain_rows(data),
        decisions=decision_section(data.decisions),
        votes=vote_rows(data.votes),
        runs=tables.run_rows(data),
        overrides=[(arm, _settings(arm.overrides)) for arm in data.arms],
        repeat=read_repeat(results),
    )


def _state(data: ComparisonData) -> str:
    missing = sum(run["state"] != "finished" for run in data.runs)
    return f"unfinished: {missing} of {len(data.runs)} runs are missing" if missing else "finished"


def _facts(data: ComparisonData) -> list[tuple[str, str]]:
    """Return (name, value) of the facts that identify the comparison; only those that are known."""
    finished = [run for run in data.runs if run["state"] == "finished"]
    times = [run["wall_s"] for run in finished if run.get("wall_s") is not None]
    facts: list[tuple[str, Any]] = [
        ("arms", len(data.arms)),
        ("seeds", len(data.seeds)),
        ("runs finished", f"{len(finished)} of {len(data.runs)}"),
        ("iterations", (data.config.get("train") or {}).get("iterations")),
        ("rollouts per run", _rollouts(finished)),
        ("time of all runs", duration(sum(times)) if times else None),
        # the median, which one run on a busy machine does not move
        ("median run", duration(statistics.median(times)) if times else None),
        ("threads per run", data.threads),
        ("commit", _commit(data.versions)),
        ("runs of other comparisons", _joined(data.joined)),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _rollouts(finished: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the rollouts of a run, as a range where runs differ."""
    counts = [run["rollouts"] for run in finished if run.get("rollouts") is not None]
    if not counts:
        return None
    least = min(counts)
    most = max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _joined(sources: Sequence[Mapping[str, Any]]) -> str | None:
    """Return how many runs were joined from earlier results, and who made them; None without any."""
    words = []
    for source in sources:
        commit = _commit(source["versions"])
        words.append(f"{source['runs']} by {commit}" if commit else str(source["runs"]))
    return "; ".join(words) or None


def _commit(versions: Mapping[str, Any]) -> str | None:
    git = versions.get("git")
    if not git:
        return None
    commit = str(git["commit"])[:10]
    return f"{commit}, modified" if git["modified"] else commit


def _hypervolume(data: ComparisonData) -> str | None:
    """Return the area that the front dominates, in words; None when it was not measured."""
    if data.hypervolume is None:
        return None
    interval = interval_text(data.hypervolume)
    words = f" (95 % interval {interval})" if interval else ""
    corner = ", ".join(f"{value:g}" for value in data.reference)
    return f"{number(data.hypervolume.mean)}{words}, measured from the point ({corner})"


def _settings(overrides: Mapping[str, Any]) -> list[str]:
    """Return overrides as the command line takes them."""
    settings = []
    for key, value in overrides.items():
        # JSON for all but texts: Python's None would be read back as a text
        text = value if isinstance(value, str) else json.dumps(value)
        settings.append(f"{key}={text}")
    return settings
