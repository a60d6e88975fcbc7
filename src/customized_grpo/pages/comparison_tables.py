"""The tables of a comparison: all arms, each against its control, quadrants, hypervolume, and runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from customized_grpo.pages.comparison_data import Arm, ComparisonData, interval
from customized_grpo.pages.plots.cells import interval_plot, share_bar
from customized_grpo.pages.plots.numbers import NONE, Interval, interval_text, number
from customized_grpo.reporting.progress import duration

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Cell:
    """A number with what stands small below it; `tone` is a class of base.css."""

    text: str = NONE
    small: str = ""
    tone: str = ""


@dataclass(frozen=True)
class ArmTable:
    """All arms by column; `base` holds the cells of the base model."""

    columns: Sequence[str]
    base: Sequence[Cell]
    rows: Sequence[tuple[Arm, Sequence[Cell]]]


def percent(share: float) -> str:
    """A share as whole per cent."""
    return f"{share:.0%}".replace("%", "\u00a0%")


def value_cell(span: Interval | None, plus: bool = False, tone: str = "") -> Cell:
    """A mean over its interval."""
    return Cell() if span is None else Cell(number(span.mean, plus), interval_text(span, plus), tone)


def arm_table(data: ComparisonData) -> ArmTable:
    """One row an arm. A column without any value is left out."""
    columns: list[tuple[str, Callable[[Arm], Cell], Cell]] = []
    if data.pair is not None:
        for name, metric in (("identity", data.pair.identity), ("prompt", data.pair.prompt)):
            columns.append((name, _final(metric), value_cell(data.base.get(metric))))
            columns.append((f"{name} change", _change(metric), Cell()))
    columns += [("degraded", _degraded, Cell()), ("margin", _margin, Cell())]
    columns.append(("outside front", _outside, Cell()))
    for name, metric in (
        ("copy score", "monitor/copy_score"),
        ("background", "monitor/background_similarity"),
    ):
        columns.append((name, _final(metric), value_cell(data.base.get(metric))))
    shown = [column for column in columns if any(column[1](arm) != Cell() for arm in data.arms)]
    return ArmTable(
        [name for name, _, _ in shown],
        [base for _, _, base in shown],
        [(arm, [cell(arm) for _, cell, _ in shown]) for arm in data.arms],
    )


def _final(metric: str) -> Callable[[Arm], Cell]:
    return lambda arm: value_cell(arm.interval("final", metric))


def _change(metric: str) -> Callable[[Arm], Cell]:
    """Coloured where the interval leaves out 0: up is good for both qualities."""

    def cell(arm: Arm) -> Cell:
        span = arm.interval("change", metric)
        tone = {"up": "better", "down": "worse"}.get(span.verdict, "unclear") if span is not None else ""
        return value_cell(span, plus=True, tone=tone)

    return cell


def _degraded(arm: Arm) -> Cell:
    count = arm.result.get("degraded")
    known = sum(run.get("degraded") is not None for run in arm.finished)
    if count is None or known == 0:
        return Cell()
    return Cell(f"{count} of {known}", tone="worse" if count else "")


def _margin(arm: Arm) -> Cell:
    """How far the arm lies outside what the front dominates; above 0 is outside."""
    span = interval((arm.result.get("outside_front") or {}).get("margin"))
    tone = {"up": "better", "down": "worse"}.get(span.verdict, "unclear") if span is not None else ""
    return value_cell(span, plus=True, tone=tone)


def _outside(arm: Arm) -> Cell:
    found = arm.result.get("outside_front")
    if not found:
        return Cell()
    outside = bool(found["outside"])
    return Cell(percent(found["share"]), "outside" if outside else "not shown", "better" if outside else "")


@dataclass(frozen=True)
class Difference:
    """One quality of an arm against its control."""

    name: str
    cell: Cell
    plot: Markup
    p: str


def control_rows(data: ComparisonData) -> list[tuple[Arm, Arm, list[Difference]]]:
    """(arm, its control, difference in each quality) of all arms that have been compared with one."""
    if data.pair is None:
        return []
    metrics = (
        (data.pair.identity, data.pair.identity_name),
        (data.pair.prompt, data.pair.prompt_name),
    )
    spans = [
        span
        for arm in data.arms
        for metric, _ in metrics
        if (span := arm.interval("against_control", metric))
    ]
    limit = _limit(spans)
    rows = []
    for arm in data.arms:
        against = arm.result.get("against_control") or {}
        control = data.arm(against.get("control"))
        found = [_difference(name, against.get(metric), limit) for metric, name in metrics]
        differences = [difference for difference in found if difference is not None]
        if control is not None and differences:
            rows.append((arm, control, differences))
    return rows


def _difference(name: str, entry: Any, limit: float) -> Difference | None:
    span = interval(entry)
    if span is None:
        return None
    p = entry.get("p_holm")
    clear = p is not None and p < SIGNIFICANT
    tone = ("better" if span.mean > 0 else "worse") if clear else "unclear"
    title = f"{name}: difference {number(span.mean, True)}, 95 % interval {interval_text(span, True)}"
    plot = interval_plot(span.mean, span.low, span.high, limit, tone=tone, title=title)
    return Difference(name, value_cell(span, plus=True, tone=tone), plot, p_text(p))


def p_text(p: float | None) -> str:
    """A p value as people write it."""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _limit(spans: Sequence[Interval]) -> float:
    """Where axes of differences end, the same for all so that they can be compared."""
    ends = [abs(v) for span in spans for v in (span.mean, span.low, span.high) if v is not None]
    return max(ends, default=0.0) * 1.1 or 1.0


QUADRANTS = (
    ("conflict", "conflict"),
    ("both_positive", "positive"),
    ("both_negative", "negative"),
)


@dataclass(frozen=True)
class QuadrantRow:
    """Quadrants of an arm: the bar, conflict and its null, and the spread of both rewards."""

    arm: Arm
    bar: Markup
    cells: Sequence[tuple[str, str]]


def quadrant_rows(data: ComparisonData) -> list[QuadrantRow]:
    """One bar for every arm that has been measured."""
    rows = []
    for arm in data.arms:
        shares = arm.result.get("quadrants")
        if not shares:
            continue
        parts = [(key.replace("_", " "), colour, float(shares[key])) for key, colour in QUADRANTS]
        null = shares.get("null")
        spread = arm.result.get("group_std") or {}
        words = ", ".join(f"{name} {share:.0%}" for name, _, share in parts)
        bar = share_bar(
            parts, null, title=f"{arm.label}: {words}" + (f", null {null:.0%}" if null is not None else "")
        )
        cells = [
            ("conflict", percent(parts[0][2])),
            ("null", percent(null) if null is not None else NONE),
            ("prompt spread", number(spread.get("prompt"))),
            ("identity spread", number(spread.get("identity"))),
        ]
        rows.append(QuadrantRow(arm, bar, cells))
    return rows


def gain_rows(data: ComparisonData) -> list[tuple[Arm, Cell, Markup]]:
    """(arm, gain, plot), the largest gain first."""
    limit = _limit([span for _, span in data.gains])
    lows = [v for _, span in data.gains for v in (span.mean, span.low) if v is not None]
    start = min(0.0, *lows) * 1.1 if lows else 0.0
    return [
        (
            arm,
            value_cell(span, plus=True),
            interval_plot(
                span.mean,
                span.low,
                span.high,
                limit,
                start=start,
                tone=arm.colour,
                title=f"{arm.label}: {number(span.mean, True)}, 95 % interval {interval_text(span, True)}",
            ),
        )
        for arm, span in sorted(data.gains, key=lambda gain: -gain[1].mean)
    ]


def run_rows(data: ComparisonData) -> list[tuple[Arm, list[str]]]:
    """(arm, what became of each seed)."""
    return [(arm, [_run(arm, seed) for seed in data.seeds]) for arm in data.arms]


def _run(arm: Arm, seed: int) -> str:
    run = next((run for run in arm.runs if run["seed"] == seed), None)
    if run is None:
        return NONE
    if run["state"] != "finished":
        return str(run["state"])
    seconds = run.get("wall_s")
    words = duration(seconds) if seconds is not None else "finished"
    return words + (", degraded" if run.get("degraded") else "")
