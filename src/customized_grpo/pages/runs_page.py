"""The page of existing runs compared: one HTML file with intervals, images and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from customized_grpo.errors import UserError
from customized_grpo.pages.comparison_data import OWN_COLOURS, read_measurement
from customized_grpo.pages.comparison_tables import Cell, value_cell
from customized_grpo.pages.curves import held_out_line, rollouts_axis
from customized_grpo.pages.figures import Figure, Section, existing
from customized_grpo.pages.page import render, write_page
from customized_grpo.pages.plots import charts
from customized_grpo.pages.plots.cell_plots import interval_plot
from customized_grpo.pages.plots.numbers import (
    NONE,
    Measurement,
    difference_title,
    p_text,
    symmetric_limit,
)
from customized_grpo.pages.run_data import RunData
from customized_grpo.statistics.crossed import SIGNIFICANT

MAX_PROMPTS = 8
"""Prompts whose images are on the page."""

NAMES = {
    "judge/identity": "held-out identity",
    "judge/prompt": "held-out prompt accuracy",
    "judge/quality": "held-out quality",
    "reward/identity": "identity reward",
    "reward/prompt": "prompt reward",
    "reward/quality": "quality reward",
    "monitor/copy_score": "copy score",
    "monitor/background_similarity": "background similarity",
}
"""Measures in words, in the order people read them."""

LESS_IS_BETTER = ("monitor/copy_score", "monitor/background_similarity")

# The judges and the monitors, not the rewards in between: training maximised those.
CURVES = tuple(NAMES)[:3] + tuple(NAMES)[-2:]
"""Measures that are drawn over training."""


@dataclass(frozen=True)
class RunView:
    """A run as the page shows it.

    Attributes:
        number: From 1, in the order given; its key in every figure.
        name: Its name.
        colour: Name of a colour variable in charts.css.
        facts: (name, value) of what identifies it.
        cells: Before, after and change of every measure, in the order of the columns.
    """

    number: int
    name: str
    colour: str
    facts: Sequence[tuple[str, str]]
    cells: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class DifferenceRow:
    """One measure of a pair of runs.

    Attributes:
        name: The measure in words.
        cell: The difference, other - first, with its interval.
        plot: The interval around 0.
        p: Holm's p-value in words; a dash for a measure that the verdict is not about.
    """

    name: str
    cell: Cell
    plot: Markup
    p: str


@dataclass(frozen=True)
class Drawn:
    """The images of one prompt, as data URIs; None where there is none.

    Attributes:
        prompt: The prompt.
        subject: Name of the subject.
        reference: The reference image.
        base: Drawn before training, if all runs drew the same.
        tuned: What each run drew at its latest evaluation.
    """

    prompt: str
    subject: str | None
    reference: str | None
    base: str | None
    tuned: Sequence[str | None]


def write_runs_page(results: Mapping[str, Any], runs: Sequence[RunData], path: Path) -> Path:
    """Write the page and return its path.

    Args:
        results: The content of results.json of `cgrpo compare RUN RUN`.
        runs: The runs in the same order, for curves and images.
        path: The HTML file; an older one is replaced.
    """
    return write_page(path, render_runs_page(results, runs))


def render_runs_page(results: Mapping[str, Any], runs: Sequence[RunData]) -> str:
    """Return the page; the same results and runs give the same page."""
    metrics = [metric for metric in NAMES if metric in results["runs"][0]["after"]]
    views = [_view(number, entry, metrics) for number, entry in enumerate(results["runs"], start=1)]
    images, problems = _drawn(runs)
    settings = [(entry["key"], list(map(_text, entry["values"]))) for entry in results["settings"]]
    return render(
        "runs.html.j2",
        results=results,
        runs=views,
        measures=[NAMES[metric] for metric in metrics],
        pairs=_pairs(results, metrics, views),
        curves=_curves(runs, views),
        images=images,
        problems=problems,
        settings=settings,
    )


def _view(number: int, entry: Mapping[str, Any], metrics: Sequence[str]) -> RunView:
    total = entry["iterations"]
    iteration = str(entry["iteration"]) if total is None else f"{entry['iteration']} of {total}"
    rollouts = entry["rollouts"]
    facts = [
        ("folder", entry["folder"]),
        ("state", entry["state"]),
        ("judged after iteration", iteration),
        ("rollouts", NONE if rollouts is None else f"{rollouts:,}"),
        ("seed", str(entry["seed"])),
        ("held-out images", f"{entry['images']} of {entry['subjects']} subjects"),
    ]
    cells = []
    for metric in metrics:
        change = read_measurement(entry["change"][metric])
        tone = _tone(metric, change) if change is not None else ""
        before = value_cell(read_measurement(entry["before"][metric]))
        after = value_cell(read_measurement(entry["after"][metric]))
        cells.append([before, after, value_cell(change, plus=True, tone=tone)])
    # numbers begin at 1; the runs after the last colour share one
    colour = OWN_COLOURS[number - 1] if number <= len(OWN_COLOURS) else "plain"
    return RunView(number, entry["name"], colour, facts, cells)


def _tone(metric: str, difference: Measurement) -> str:
    """Return the colour of a difference: "better", "worse" or "unclear"."""
    if metric not in LESS_IS_BETTER:
        return difference.tone
    return {"better": "worse", "worse": "better"}.get(difference.tone, difference.tone)


def _pairs(
    results: Mapping[str, Any], metrics: Sequence[str], views: Sequence[RunView]
) -> list[tuple[RunView, RunView, list[DifferenceRow]]]:
    """Return (the other run, the first run, their differences) of every pair."""
    shown: list[Measurement] = []
    for pair in results["pairs"]:
        shown += [
            measurement for measurement in map(read_measurement, pair["difference"].values()) if measurement
        ]
    # one axis for all pairs, so that their rows can be compared
    limit = symmetric_limit(shown)
    pairs = []
    for pair, view in zip(results["pairs"], views[1:], strict=True):
        rows = [
            _row(metric, pair["difference"][metric], limit)
            for metric in metrics
            if metric in pair["difference"]
        ]
        pairs.append((view, views[0], rows))
    return pairs


def _row(metric: str, entry: Mapping[str, Any], limit: float) -> DifferenceRow:
    difference = Measurement(entry["mean"], entry["low"], entry["high"])
    p = entry["p_holm"]
    # what was not tested has no corrected p-value, and no colour
    tone = _tone(metric, difference) if p is not None and p < SIGNIFICANT else "unclear"
    name = NAMES[metric]
    plot = interval_plot(difference, limit, tone=tone, title=difference_title(name, difference))
    return DifferenceRow(name, value_cell(difference, plus=True, tone=tone), plot, p_text(p))


def _curves(runs: Sequence[RunData], views: Sequence[RunView]) -> Section | None:
    """Return the held-out measures over training; None where no run was judged in between."""
    figures = existing(*(_curve(runs, views, metric) for metric in CURVES))
    lead = "Held-out measures over training. A number at the end of a line names its run."
    return Section("Held-out curves", lead, figures) if figures else None


def _curve(runs: Sequence[RunData], views: Sequence[RunView], metric: str) -> Figure | None:
    lines = []
    for run, view in zip(runs, views, strict=True):
        line = held_out_line(run, metric, str(view.number), view.colour)
        if line is not None:
            lines.append(line)
    if not lines:
        return None
    # that of the longest run: the lines of the others end before its right side
    axis = max((rollouts_axis(run) for run in runs), key=lambda axis: axis.high)
    title = NAMES[metric].capitalize()
    better = "Lower is better." if metric in LESS_IS_BETTER else "Higher is better."
    return Figure(title, charts.line_chart(lines, axis, title=title), f"Bands are 95 % intervals. {better}")


def _drawn(runs: Sequence[RunData]) -> tuple[list[Drawn], list[str]]:
    """Return what the runs draw for the prompts that all of them draw, and what could not be read."""
    if any(run.samples is None or not run.samples.iterations for run in runs):
        return [], []
    images: list[Drawn] = []
    try:
        # only as many rows as the shortest list has
        for number in range(min(MAX_PROMPTS, *(len(run.samples.rows) for run in runs if run.samples))):
            drawn = _prompt(runs, number)
            if drawn is not None:
                images.append(drawn)
    except UserError as error:  # the numbers stand without the images
        return images, [error.message]
    return images, []


def _prompt(runs: Sequence[RunData], number: int) -> Drawn | None:
    """Return the images of one row of the samples; None where the runs drew other prompts."""
    samples = [run.samples for run in runs if run.samples is not None]
    rows = [one.rows[number] for one in samples]
    if any(
        (row.get("prompt"), row.get("subject")) != (rows[0].get("prompt"), rows[0].get("subject"))
        for row in rows
    ):
        return None
    tuned = [one.drawn(number, max(one.iterations)) for one in samples]
    # as data URIs, so that equal images are one: only runs of the same base share a column
    bases = {one.drawn(number, 0) for one in samples if 0 in one.iterations}
    return Drawn(
        prompt=rows[0].get("prompt") or "",
        subject=rows[0].get("subject"),
        reference=samples[0].reference(number),
        base=bases.pop() if len(bases) == 1 else None,
        tuned=tuned,
    )


def _text(value: Any) -> str:
    """Return a setting as the command line takes it; a dash where a recipe does not have it."""
    if value is None:
        return NONE
    return value if isinstance(value, str) else json.dumps(value)
