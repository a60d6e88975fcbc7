"""The tables of a comparison: all arms, each against its control, quadrants, hypervolume, and runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from customized_grpo.pages.comparison_data import ArmView, ComparisonData, read_measurement
from customized_grpo.pages.comparison_head import MIN_RUNS
from customized_grpo.pages.plots.cell_plots import interval_plot, share_bar
from customized_grpo.pages.plots.numbers import (
    NONE,
    Measurement,
    difference_title,
    interval_text,
    number,
    p_text,
    symmetric_limit,
)
from customized_grpo.reporting.progress import duration
from customized_grpo.statistics.crossed import SIGNIFICANT


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: The number.
        small: Small text below it.
        tone: A class of base.css, for its colour; may be empty.
    """

    text: str = NONE
    small: str = ""
    tone: str = ""


@dataclass(frozen=True)
class ArmTable:
    """All arms by column.

    Attributes:
        columns: Names of the columns.
        base: Cells of the base model.
        rows: (arm, its cells).
    """

    columns: Sequence[str]
    base: Sequence[Cell]
    rows: Sequence[tuple[ArmView, Sequence[Cell]]]


@dataclass(frozen=True)
class _Column:
    """One column of the table of all arms.

    Attributes:
        name: Its heading.
        cell: Returns the cell of an arm.
        base: The cell of the base model.
    """

    name: str
    cell: Callable[[ArmView], Cell]
    base: Cell = field(default_factory=Cell)


def percent(share: float) -> str:
    """Return a share as whole per cent."""
    # a no-break space, so that number and sign stay on one line
    return f"{share:.0%}".replace("%", "\u00a0%")


def value_cell(measurement: Measurement | None, plus: bool = False, tone: str = "") -> Cell:
    """Return a mean with its interval below; an empty cell without a measurement."""
    if measurement is None:
        return Cell()
    return Cell(number(measurement.mean, plus), interval_text(measurement, plus), tone)


def arm_table(data: ComparisonData) -> ArmTable:
    """Return one row an arm. A column without any value is left out."""
    columns: list[_Column] = []
    if data.pair is not None:
        for name, metric in (("identity", data.pair.identity), ("prompt", data.pair.prompt)):
            columns.append(_final(data, name, metric))
            columns.append(_Column(f"{name} change", _change(metric)))
    columns.append(_Column("degraded", _degraded))
    columns.append(_Column("margin", _margin))
    columns.append(_Column("outside front", _outside))
    columns.append(_final(data, "copy score", "monitor/copy_score"))
    columns.append(_final(data, "background", "monitor/background_similarity"))
    # a comparison without monitors or a front has no empty columns then
    columns = [column for column in columns if _has_values(column, data.arms)]
    rows = []
    for arm in data.arms:
        rows.append((arm, [column.cell(arm) for column in columns]))
    return ArmTable([column.name for column in columns], [column.base for column in columns], rows)


def _has_values(column: _Column, arms: Sequence[ArmView]) -> bool:
    return any(column.cell(arm) != Cell() for arm in arms)


def _final(data: ComparisonData, name: str, metric: str) -> _Column:
    """Return the column of a metric at the end of training."""
    base = value_cell(data.base.get(metric))
    return _Column(name, lambda arm: value_cell(arm.measurement("final", metric)), base)


def _change(metric: str) -> Callable[[ArmView], Cell]:
    """Return the cells of a change against the base: up is good for both qualities."""
    return lambda arm: _difference_cell(arm.measurement("change", metric))


def _difference_cell(difference: Measurement | None) -> Cell:
    """Return a difference, coloured where its interval leaves out 0; more is better."""
    return value_cell(difference, plus=True, tone=difference.tone if difference is not None else "")


def _degraded(arm: ArmView) -> Cell:
    count = arm.result.get("degraded")
    # a run without judges or intervals is neither degraded nor not, and does not count
    judged = sum(run.get("degraded") is not None for run in arm.finished)
    if count is None or judged == 0:
        return Cell()
    return Cell(f"{count} of {judged}", tone="worse" if count else "")


def _margin(arm: ArmView) -> Cell:
    return _difference_cell(arm.margin)


def _outside(arm: ArmView) -> Cell:
    """Return the share of draws in which the arm lies outside the front, and whether that is shown."""
    entry = arm.result.get("outside_front")
    if not entry:
        return Cell()
    if arm.seeds_with_front < MIN_RUNS:
        return Cell(percent(entry["share"]), "one seed")
    # decided where the draws were made; the share alone must not be judged again here
    if entry["outside"]:
        return Cell(percent(entry["share"]), "outside", "better")
    return Cell(percent(entry["share"]), "not shown")


@dataclass(frozen=True)
class ControlDifference:
    """One quality of an arm against its control.

    Attributes:
        name: The quality.
        cell: The difference.
        plot: Its interval around 0.
        p: Its p-value in words.
    """

    name: str
    cell: Cell
    plot: Markup
    p: str


@dataclass(frozen=True)
class ControlRow:
    """An arm against its control.

    Attributes:
        arm: The arm.
        control: Its control.
        differences: One for each quality.
    """

    arm: ArmView
    control: ArmView
    differences: Sequence[ControlDifference]


def control_rows(data: ComparisonData) -> list[ControlRow]:
    """Return all arms that have been compared with a control."""
    pair = data.pair
    if pair is None:
        return []
    names = {pair.identity: pair.identity_name, pair.prompt: pair.prompt_name}
    measurements: list[Measurement] = []
    for arm in data.arms:
        for metric in names:
            measurement = arm.measurement("against_control", metric)
            if measurement is not None:
                measurements.append(measurement)
    limit = symmetric_limit(measurements)  # one axis for all, so that rows can be compared
    rows = []
    for arm in data.arms:
        against = arm.result.get("against_control") or {}
        control = data.arm(against.get("control"))
        differences: list[ControlDifference] = []
        for metric, name in names.items():
            measurement = read_measurement(against.get(metric))
            if measurement is not None:
                differences.append(_difference(name, measurement, against[metric].get("p_holm"), limit))
        if control is not None and differences:
            rows.append(ControlRow(arm, control, differences))
    return rows


def _difference(name: str, difference: Measurement, p: float | None, limit: float) -> ControlDifference:
    """Return a difference, coloured where its adjusted p-value is small."""
    # by the adjusted p-value, not the interval: the interval knows nothing of the other comparisons
    tone = "unclear"
    if p is not None and p < SIGNIFICANT:
        tone = "better" if difference.mean > 0 else "worse"
    plot = interval_plot(difference, limit, tone=tone, title=difference_title(name, difference))
    return ControlDifference(name, value_cell(difference, plus=True, tone=tone), plot, p_text(p))


# Conflict is first, because the tick of its null is read against the first part of a bar.
QUADRANTS = (
    ("conflict", "conflict"),
    ("both_positive", "positive"),
    ("both_negative", "negative"),
)
"""(key in results.json, colour)."""


@dataclass(frozen=True)
class QuadrantRow:
    """Quadrants of an arm.

    Attributes:
        arm: The arm.
        bar: Their shares.
        cells: (name, value) of conflict, its null, and the spread of both rewards.
    """

    arm: ArmView
    bar: Markup
    cells: Sequence[tuple[str, str]]


def quadrant_rows(data: ComparisonData) -> list[QuadrantRow]:
    """Return one bar for every arm that has been measured."""
    rows = []
    for arm in data.arms:
        shares = arm.result.get("quadrants")
        if not shares:
            continue
        parts = [(key.replace("_", " "), colour, float(shares[key])) for key, colour in QUADRANTS]
        null = shares.get("null")
        spread = arm.result.get("group_std") or {}
        words = [f"{name} {share:.0%}" for name, _, share in parts]
        if null is not None:
            words.append(f"null {null:.0%}")
        bar = share_bar(parts, null, title=f"{arm.label}: {', '.join(words)}")
        cells = [
            ("conflict", percent(shares["conflict"])),
            ("null", percent(null) if null is not None else NONE),
            ("prompt spread", number(spread.get("prompt"))),
            ("identity spread", number(spread.get("identity"))),
        ]
        rows.append(QuadrantRow(arm, bar, cells))
    return rows


@dataclass(frozen=True)
class GainRow:
    """The hypervolume that an arm adds to the front.

    Attributes:
        arm: The arm.
        cell: The gain.
        plot: Its interval.
    """

    arm: ArmView
    cell: Cell
    plot: Markup


def gain_rows(data: ComparisonData) -> list[GainRow]:
    """Return the gains, the largest first."""
    limit = symmetric_limit([gain for _, gain in data.gains])
    # Gains are hardly ever negative, so the axis starts at 0 and not at -limit.
    start = 0.0
    for _, gain in data.gains:
        start = min(start, gain.mean, gain.low if gain.low is not None else 0.0)
    rows = []
    for arm, gain in sorted(data.gains, key=lambda pair: -pair[1].mean):
        size = number(gain.mean, plus=True)
        title = f"{arm.label}: {size}, 95 % interval {interval_text(gain, plus=True)}"
        # a tenth more, as much air as `symmetric_limit` leaves on the right
        plot = interval_plot(gain, limit, start=start * 1.1, tone=arm.colour, title=title)
        rows.append(GainRow(arm, value_cell(gain, plus=True), plot))
    return rows


def run_rows(data: ComparisonData) -> list[tuple[ArmView, list[str]]]:
    """Return (arm, the state of the run of each seed)."""
    rows = []
    for arm in data.arms:
        rows.append((arm, [_run(arm, seed) for seed in data.seeds]))
    return rows


def _run(arm: ArmView, seed: int) -> str:
    run = next((run for run in arm.runs if run["seed"] == seed), None)
    if run is None:
        return NONE
    if run["state"] != "finished":
        return str(run["state"])
    seconds = run.get("wall_s")
    words = duration(seconds) if seconds is not None else "finished"
    return words + (", degraded" if run.get("degraded") else "")
