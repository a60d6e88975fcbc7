"""Curves of a run: a metric of metrics.jsonl over the rollouts, thinned and smoothed for a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from customized_grpo.pages.figures import Figure
from customized_grpo.pages.plots import charts
from customized_grpo.pages.plots.frame import Line, XAxis
from customized_grpo.pages.run_data import RunData
from customized_grpo.reporting.metrics import Record

MAX_POINTS = 240
"""Points of a curve; more are averaged in bins, or thinned to their extremes, or the page would grow."""

_NUMBERS = (int, float)  # as a tuple: a union would be made anew for every value of a long run

MAX_DOTS = 40
"""Measured points up to which each has a dot; more of them would hide the line."""


@dataclass(frozen=True)
class Series:
    """A metric over the rollouts.

    Attributes:
        x: Rollouts of every record.
        y: Values; None where the metric was not measured.
    """

    x: list[float]
    y: list[float | None]


def read_series(records: Sequence[Record], key: str) -> Series | None:
    """Return a metric of the records, or None when it was never measured."""
    series = Series([], [])
    for record in records:
        rollouts = record.get("rollouts")
        # a record that lacks the key leaves no gap; null, a number that was not finite, leaves one below
        if key not in record or not isinstance(rollouts, _NUMBERS):
            continue
        value = record[key]
        series.x.append(float(rollouts))
        series.y.append(float(value) if isinstance(value, _NUMBERS) else None)
    return series if any(value is not None for value in series.y) else None


def bin_means(
    x: Sequence[float], y: Sequence[float | None], limit: int = MAX_POINTS
) -> tuple[list[float], list[float | None]]:
    """Return at most `limit` points, each the mean of equally many neighbours.

    Args:
        x: Positions.
        y: Values; None where there is none.
        limit: Largest number of points.

    Returns:
        Mean positions, and mean values with None where a bin holds no value.
    """
    # division rounded up, without a float in between
    size = max(-(-len(x) // limit), 1)
    means_x: list[float] = []
    means_y: list[float | None] = []
    for start in range(0, len(x), size):
        positions = x[start : start + size]
        values = [value for value in y[start : start + size] if value is not None]
        means_x.append(sum(positions) / len(positions))
        means_y.append(sum(values) / len(values) if values else None)
    return means_x, means_y


def extremes(y: Sequence[float | None], limit: int = MAX_POINTS) -> list[int]:
    """Return places of about `limit` values: both ends, and the lowest and highest of each few neighbours.

    Nothing that stands out is lost, as it would be in means. Neighbours without a value leave a gap.
    """
    size = max(-(-2 * len(y) // limit), 1)  # two of every bin
    kept = {0, len(y) - 1}
    for start in range(0, len(y), size):
        values = {
            place: value for place, value in enumerate(y[start : start + size], start) if value is not None
        }
        kept |= (
            {min(values, key=values.__getitem__), max(values, key=values.__getitem__)} if values else {start}
        )
    return sorted(kept)


def smoothing_window(count: int) -> int:
    """Return the window of the rolling mean over `count` points: odd, about an eighth of the curve."""
    # odd, so that a point has as many neighbours on its left as on its right
    return count // 16 * 2 + 1


def rolling_mean(y: Sequence[float | None], window: int) -> list[float | None]:
    """Return centred means over `window` neighbours (fewer at the ends); None stays None."""
    half = window // 2
    smooth: list[float | None] = []
    for index, value in enumerate(y):
        # a gap stays a gap: a mean over it would show what nobody measured
        if value is None:
            smooth.append(None)
            continue
        start = max(0, index - half)
        neighbours = [other for other in y[start : index + half + 1] if other is not None]
        smooth.append(sum(neighbours) / len(neighbours))
    return smooth


def training_line(run: RunData, key: str, name: str, colour: str, **options: Any) -> Line | None:
    """Return a training metric: the smoothed line over the faint raw one; None when not measured."""
    series = read_series(run.train, key)
    if series is None:
        return None
    x, y = bin_means(series.x, series.y)
    window = smoothing_window(len(y))
    # too few points to smooth: line and raw values would be the same
    if window == 1:
        return Line(name, x, y, colour, **options)
    smooth = rolling_mean(y, window)
    if len(x) == len(series.x):
        return Line(name, x, smooth, colour, raw=y, **options)
    places = extremes(series.y)
    note = f"Of {len(series.x):,} iterations the faint line has the lowest and the highest of every few."
    raw = [series.y[place] for place in places]
    # where they were measured: places count records, while x counts bins
    raw_x = [series.x[place] for place in places]
    return Line(name, x, smooth, colour, raw=raw, raw_x=raw_x, note=note, **options)


def held_out_line(run: RunData, key: str, name: str, colour: str, **options: Any) -> Line | None:
    """Return a held-out metric: its points, with a band where intervals were computed; None when absent."""
    series = read_series(run.evals, key)
    if series is None:
        return None
    line = Line(name, series.x, series.y, colour, dots=len(series.x) <= MAX_DOTS, **options)
    low = read_series(run.evals, f"{key}_low")
    high = read_series(run.evals, f"{key}_high")
    # an evaluation without an interval would move the ends against the points
    if low is not None and high is not None and low.x == high.x == series.x:
        line = replace(line, low=low.y, high=high.y)
    return line if len(series.x) <= MAX_POINTS else _thinned(line)


def _thinned(line: Line) -> Line:
    """Return a line of measured points with its extremes alone."""
    # of the line alone: its interval goes where the point goes
    places = extremes(line.y)

    def picked(values: Sequence[Any] | None) -> list[Any] | None:
        return None if values is None else [values[place] for place in places]

    return replace(
        line,
        x=picked(line.x) or [],
        y=picked(line.y) or [],
        low=picked(line.low),
        high=picked(line.high),
        note=f"Of {len(line.x):,} evaluations the lowest and the highest of every few are drawn.",
    )


def rollouts_axis(run: RunData) -> XAxis:
    """Return the axis of rollouts, with iterations as the second row (the last record counts both)."""
    rollouts = run.last.get("rollouts")
    iteration = run.last.get("iteration")
    if isinstance(rollouts, int) and isinstance(iteration, int) and rollouts > 0:
        # one factor for the whole axis: on average, where dynamic sampling changes their number
        return XAxis("rollouts", rollouts, "iteration", iteration / rollouts)
    return XAxis("rollouts", 1.0)


def alarm_marks(run: RunData) -> list[tuple[float, str]]:
    """Return (rollouts, message) of every alarm; events count iterations alone."""
    iterations_per_rollout = rollouts_axis(run).second_scale
    # no record yet, or no iteration trained: there is no place on the axis to mark
    if iterations_per_rollout == 0:
        return []
    marks = []
    for event in run.events:
        if event.get("event") == "alarm":
            rollouts = int(event["iteration"] or 0) / iterations_per_rollout
            marks.append((rollouts, str(event.get("message", ""))))
    return marks


def lines_figure(
    run: RunData, title: str, caption: str, lines: Sequence[Line | None], **options: Any
) -> Figure | None:
    """Return a figure of the lines that were measured; None when there is none.

    Args:
        run: The run, for the axis.
        title: Heading of the figure.
        caption: How to read it.
        lines: The curves.
        options: Further arguments of `charts.line_chart`.
    """
    measured = [line for line in lines if line is not None]
    if not measured:
        return None
    chart = charts.line_chart(measured, rollouts_axis(run), title=title, **options)
    # an ordered set: lines that were thinned in the same way share one sentence
    notes = dict.fromkeys(line.note for line in measured if line.note)
    return Figure(title, chart, " ".join([caption, *notes]))


def total(records: Sequence[Record], key: str) -> float:
    """Return the sum of a metric over the records that have it."""
    values = [record.get(key) for record in records]
    return sum(value for value in values if isinstance(value, _NUMBERS))
