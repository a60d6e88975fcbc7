"""The page of a comparison: one HTML file with every arm, interval and definition."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from customized_grpo.config.yaml_text import write_yaml
from customized_grpo.pages import comparison_figures as figures
from customized_grpo.pages import comparison_tables as tables
from customized_grpo.pages.comparison_data import ComparisonData, read_comparison
from customized_grpo.pages.page import environment, write_page
from customized_grpo.pages.plots.numbers import interval_text, number
from customized_grpo.pages.step_figures import step_section
from customized_grpo.reporting.progress import duration

ROLES = {
    "front": "Front",
    "method": "Method",
    "control": "Control",
    "rival": "Rival",
}
"""How the roles of arms are called on the page."""


def write_comparison_page(results: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a comparison, finished or not, and return its path.

    Args:
        results: What results.json holds.
        path: The HTML file; an older one is replaced.

    Raises:
        UserError: The results have another format.
    """
    return write_page(path, render_comparison(results))


def render_comparison(results: Mapping[str, Any]) -> str:
    """The page of a comparison; the same results give the same page.

    Args:
        results: What results.json holds.

    Raises:
        UserError: The results have another format.
    """
    data = read_comparison(results)
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            data=data,
            state=_state(data),
            roles=ROLES,
            facts=_facts(data),
            pareto=figures.pareto(data),
            table=tables.arm_table(data),
            controls=tables.control_rows(data),
            curves=figures.curves(data),
            strips=figures.strips(data),
            quadrants=tables.quadrant_rows(data),
            hypervolume=_hypervolume(data),
            gains=tables.gain_rows(data),
            steps=step_section(data.steps),
            runs=tables.run_rows(data),
            overrides=[(arm, _settings(arm.overrides)) for arm in data.arms],
            recipe=write_yaml(dict(data.config)),
            command=shlex.join(data.command),
        )
    )


def _state(data: ComparisonData) -> str:
    left = sum(run["state"] != "finished" for run in data.runs)
    return f"unfinished: {left} of {len(data.runs)} runs are missing" if left else "finished"


def _facts(data: ComparisonData) -> list[tuple[str, str]]:
    """(name, value) of what identifies the comparison at a glance; only what is known."""
    finished = [run for arm in data.arms for run in arm.finished]
    times = [run["wall_s"] for run in finished if run.get("wall_s") is not None]
    rollouts = sorted({run["rollouts"] for run in finished if run.get("rollouts") is not None})
    facts: list[tuple[str, Any]] = [
        ("arms", len(data.arms)),
        ("seeds", len(data.seeds)),
        ("runs finished", f"{len(finished)} of {len(data.runs)}"),
        ("iterations", (data.config.get("train") or {}).get("iterations")),
        (
            "rollouts per run",
            " to ".join(f"{count:,}" for count in rollouts[:: len(rollouts) - 1 or 1]) or None,
        ),
        ("time of all runs", duration(sum(times)) if times else None),
        ("median run", duration(statistics.median(times)) if times else None),
        ("threads per run", data.threads),
        ("commit", _commit(data.versions)),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _commit(versions: Mapping[str, Any]) -> str | None:
    git = versions.get("git")
    if not git:
        return None
    commit = str(git["commit"])[:10]
    return f"{commit}, modified" if git["modified"] else commit


def _hypervolume(data: ComparisonData) -> str | None:
    """The area that the front dominates, in a sentence."""
    span = data.hypervolume
    if span is None:
        return None
    words = interval_text(span)
    corner = ", ".join(f"{value:g}" for value in data.reference)
    return (
        number(span.mean)
        + (f" (95 % interval {words})" if words else "")
        + f", measured from the point ({corner})"
    )


def _settings(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as the command line takes them."""
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()
    ]
