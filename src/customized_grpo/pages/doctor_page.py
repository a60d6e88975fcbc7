"""The page of a doctor's examination: one HTML file with rewards, conflict and when qualities are decided."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from customized_grpo.pages.decision_figures import QUARTERS, decision_section, score_rows
from customized_grpo.pages.page import render, write_page
from customized_grpo.pages.plots.numbers import NONE

Findings = Mapping[str, Any]


def write_doctor_page(findings: Findings, recipe: str, path: Path) -> Path:
    """Write the page of an examination and return its path.

    Args:
        findings: What `cgrpo doctor --json` writes.
        recipe: Name of the recipe.
        path: The HTML file; an older one is replaced.
    """
    return write_page(path, render_doctor_page(findings, recipe))


def render_doctor_page(findings: Findings, recipe: str) -> str:
    """Return the page of an examination; the same findings give the same page."""
    # null where --points 0 left them out
    decisions = findings["decisions"] or {}
    return render(
        "doctor.html.j2",
        recipe=recipe,
        problems=findings["problems"],
        notes=findings["notes"],
        facts=_facts(findings),
        rewards=[_reward(reward) for reward in findings["rewards"]],
        decisions=decision_section(decisions),
        scores=score_rows(decisions) if decisions else [],
        quarters=[f"{quarter:.0%}" for quarter in QUARTERS],
    )


def _facts(findings: Findings) -> list[tuple[str, str]]:
    """Return (name, value) of the numbers of the whole examination; only those that were measured."""
    facts = [("prompts", f"{findings['prompts']}"), ("samples", f"{findings['samples']}")]
    # None with one kind of reward, and where a reward never varies: there is no conflict to speak of
    if findings["rho"] is not None:
        facts += [
            ("correlation of the rewards in groups", f"{findings['rho']:+.3f}"),
            ("advantages in conflict", f"{findings['conflict']:.1%}"),
            ("expected at this correlation", f"{findings['conflict_null']:.1%}"),
        ]
    if findings["ratio_deviation"] is not None:
        limit = f"{findings['ratio_tolerance']:.0e}"
        facts.append(("first-pass ratio off by", f"{findings['ratio_deviation']:.1e} (limit {limit})"))
    return facts


def _reward(reward: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """Return a reward's name and kind, and (column, value) of its numbers."""
    return f"{reward['name']} ({reward['kind']})", [
        ("mean", _number(reward["mean"])),
        ("in-group std", _number(reward["group_std"])),
        ("groups without spread", f"{reward['zero_std_groups']:.1%}"),
        ("not scored", f"{reward['nan_samples']:.1%}"),
    ]


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"
