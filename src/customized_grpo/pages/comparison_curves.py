"""The training curves of a comparison: large ones of the highlighted arms, small ones of the others.

A figure whose numbers were not measured is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from customized_grpo.pages.comparison_data import ArmView, ComparisonData, Record
from customized_grpo.pages.comparison_plane import shorten
from customized_grpo.pages.curves import MAX_POINTS, bin_means, rolling_mean, smoothing_window
from customized_grpo.pages.figures import Figure, Section, existing
from customized_grpo.pages.plots import charts
from customized_grpo.pages.plots.frame import Level, Line, XAxis, measured
from customized_grpo.pages.plots.scales import domain

MAX_DOTS = 12
"""Evaluations up to which each is marked by a dot."""

NAMES_WIDTH = 156
"""Part of that width for the names of the arms."""

SMALL = (360, 172)
"""Size of the small charts, three abreast."""


@dataclass(frozen=True)
class CurveSpec:
    """A curve to draw.

    Attributes:
        kind: The records that hold it: "evals" or "train".
        key: Metric in the records.
        title: Heading of the figure.
        caption: How to read it.
        least: Smallest range of the y axis, so that a change too small to matter does not fill the chart.
    """

    kind: str
    key: str
    title: str
    caption: str
    least: float = 0.0


COPYING = (
    CurveSpec(
        "evals",
        "monitor/copy_score",
        "Copy score",
        "0: as far from the reference as another honest image of the subject; 1: the reference itself.",
        0.1,
    ),
    CurveSpec(
        "evals",
        "monitor/background_similarity",
        "Background similarity",
        "Likeness to the reference outside the subject. A rise means that more of the scene is copied.",
        0.1,
    ),
)
SPREAD = (
    CurveSpec(
        "train",
        "reward/prompt_group_std",
        "Spread of the prompt reward",
        "Standard deviation among the samples of one prompt. Near 0, normalising by it only amplifies noise.",
    ),
    CurveSpec(
        "train",
        "reward/identity_group_std",
        "Spread of the identity reward",
        "Standard deviation among the samples of one prompt.",
    ),
)


def _qualities(data: ComparisonData) -> list[CurveSpec]:
    if data.pair is None:
        return []
    higher = "Higher is better."
    return [
        CurveSpec("evals", data.pair.identity, data.pair.identity_name, higher, 0.05),
        CurveSpec("evals", data.pair.prompt, data.pair.prompt_name, higher, 0.05),
    ]


def curves(data: ComparisonData) -> Section:
    """Return training curves of the highlighted arms; without figures before a run has finished."""
    arms = [arm for arm in data.arms if arm.highlighted]
    lead = (
        "Means over the finished runs of an arm; bands reach from the lowest to the highest seed, so they "
        "are no confidence intervals. The last two are from training, as rolling means; the others are "
        "held-out measures. Axes show the range that occurs; most do not start at 0."
    )
    if any(len(run.get("evals") or ()) > MAX_POINTS for run in data.runs):
        lead += " Where a run has many evaluations, a point is the mean of a few and bands reach over all."
    specs = [*_qualities(data), *COPYING, *SPREAD]
    figures = [_curves(data, arms, spec) for spec in specs]
    return Section("Training curves", lead, existing(*figures))


def _curves(data: ComparisonData, arms: Sequence[ArmView], spec: CurveSpec) -> Figure | None:
    lines: list[Line] = []
    for arm in arms:
        # cut to what NAMES_WIDTH holds: about 18 characters of a wide bold font
        lines += _lines(arm, spec, shorten(arm.title), arm.colour)
    if not lines:
        return None
    # training records have no base: it is measured on held-out rows only
    base = data.base.get(spec.key) if spec.kind == "evals" else None
    chart = charts.line_chart(
        lines,
        _axis(lines),
        title=spec.title,
        levels=[Level("base", base.mean)] if base is not None else [],
        least=spec.least,
        labels=NAMES_WIDTH,
    )
    return Figure(spec.title, chart, spec.caption)


def _axis(lines: Sequence[Line]) -> XAxis:
    return XAxis("rollouts", max(max(line.x) for line in lines))


def _lines(arm: ArmView, spec: CurveSpec, name: str, colour: str, *, dash_front: bool = True) -> list[Line]:
    """Return the curve of an arm; nothing when no run has the metric."""
    curve = mean_curve(arm.finished, spec.kind, spec.key)
    if curve is None:
        return []
    alone = len(arm.finished) == 1 and not curve.is_thinned  # one seed has no range
    line = Line(
        name,
        curve.x,
        curve.mean,
        colour,
        low=None if alone else curve.low,
        high=None if alone else curve.high,
        # among several arms the dashes tell those of the front; a chart of one arm needs no such key
        style="dashed" if dash_front and arm.weight is not None else "solid",
        dots=spec.kind == "evals" and len(curve.x) <= MAX_DOTS,
        show_value=False,
    )
    return [line]


@dataclass(frozen=True)
class MeanCurve:
    """A metric over several runs.

    Attributes:
        x: Rollouts, ascending.
        mean: Mean over the runs that have a value there.
        low: The lowest of them.
        high: The highest of them.
        is_thinned: Whether a point stands for several positions; low and high are then those of all of them.
    """

    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    is_thinned: bool = False


def mean_curve(runs: Sequence[Record], kind: str, key: str) -> MeanCurve | None:
    """Return a metric against rollouts over several runs; None when no run has it.

    Args:
        runs: Runs as in results.json.
        kind: "evals", or "train" for rolling means of every run.
        key: The metric.
    """
    # by position and not by place in the list: runs of an arm need not have equally many records
    by_rollouts: dict[float, list[float]] = defaultdict(list)
    for run in runs:
        records = run.get(kind) or ()
        x = [float(record["rollouts"]) for record in records]
        y = [record.get(key) for record in records]
        if kind == "train" and x:
            # run by run: the runs of an arm have the same iterations, so their bins fall on the same rollouts
            x, y = bin_means(x, y)
            y = rolling_mean(y, smoothing_window(len(y)))
        for rollouts, value in zip(x, y, strict=True):
            if value is not None:
                by_rollouts[rollouts].append(float(value))
    if not by_rollouts:
        return None
    positions = sorted(by_rollouts)
    columns = [by_rollouts[position] for position in positions]
    low = [min(values) for values in columns]
    high = [max(values) for values in columns]
    mean = [sum(values) / len(values) for values in columns]
    if len(positions) <= MAX_POINTS:
        return MeanCurve(positions, mean, low, high)
    x, binned = bin_means(positions, mean)
    # the bins of `bin_means`, so that low and high belong to its points
    size = -(-len(positions) // MAX_POINTS)
    starts = range(0, len(positions), size)
    return MeanCurve(
        x,
        [value for value in binned if value is not None],  # every position has a value
        [min(low[start : start + size]) for start in starts],
        [max(high[start : start + size]) for start in starts],
        is_thinned=True,
    )


@dataclass(frozen=True)
class Strip:
    """The small charts of one arm, side by side.

    Attributes:
        arm: The arm.
        charts: As inline SVG.
    """

    arm: ArmView
    charts: Sequence[Markup]


@dataclass(frozen=True)
class _SmallChart:
    """One column of the strips: a chart with one or two curves.

    Attributes:
        title: Title after the arm's.
        specs: Its curves.
        names: (name, colour) of each curve.
    """

    title: str
    specs: Sequence[CurveSpec]
    names: Sequence[tuple[str, str]]


def strips(data: ComparisonData) -> list[Strip]:
    """Return small charts of every arm that is not highlighted, with the same axes for all."""
    columns = [
        _SmallChart("qualities", _qualities(data), (("identity", "identity"), ("prompt", "prompt"))),
        _SmallChart("copying", COPYING, (("copy", "copied"), ("background", "plain"))),
        _SmallChart("spread", SPREAD, (("prompt", "prompt"), ("identity", "identity"))),
    ]
    arms = [arm for arm in data.arms if not arm.highlighted and arm.finished]
    drawn = [_small_charts(arms, column) for column in columns]
    rows = []
    for arm in arms:
        # an arm without the records of one column keeps its other charts
        own = [by_arm[arm.name] for by_arm in drawn if arm.name in by_arm]
        if own:
            rows.append(Strip(arm, own))
    return rows


def _small_charts(arms: Sequence[ArmView], column: _SmallChart) -> dict[str, Markup]:
    """Return one chart an arm, by its name, with common axes."""
    lines_of: dict[str, list[Line]] = {}
    all_lines: list[Line] = []
    for arm in arms:
        lines: list[Line] = []
        # not strict: before any arm has both qualities there is no curve for their two names
        for spec, (name, colour) in zip(column.specs, column.names, strict=False):
            lines += _lines(arm, spec, name, colour, dash_front=False)
        all_lines += lines
        if lines:
            lines_of[arm.name] = lines
    values: list[float] = []
    for line in all_lines:
        values += measured(line.y) + measured(line.low) + measured(line.high)
    if not values:
        return {}
    # over all arms: a reader compares charts that stand side by side
    axis = _axis(all_lines)
    y_range = domain(values, least=0.05)
    drawn = {}
    for arm in arms:
        if arm.name in lines_of:
            title = f"{arm.title}: {column.title}"
            drawn[arm.name] = charts.line_chart(
                lines_of[arm.name], axis, title=title, y_range=y_range, size=SMALL
            )
    return drawn
