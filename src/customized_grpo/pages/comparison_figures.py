"""The figures of a comparison: the plane of the two qualities, and training curves.

A figure whose numbers were not measured is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from customized_grpo.pages.comparison_data import Arm, ComparisonData, Record
from customized_grpo.pages.plots import charts
from customized_grpo.pages.plots.charts import Level, Line, XAxis
from customized_grpo.pages.plots.scales import domain
from customized_grpo.pages.plots.scatter import Point, scatter
from customized_grpo.pages.run_figures import Figure, Section, bin_means, rolling_mean

NAMED = 9
"""Arms whose names fit beside their points; with more of them only the numbers stand there."""

LONGEST_NAME = 20
"""Characters of a name in a chart."""

WIDE, NAMES = (500, 240), 160
"""Size of the main charts, and of it the room for names."""

SMALL = (360, 172)
"""Size of the small charts, three abreast."""


@dataclass(frozen=True)
class Pareto:
    """The plane of the two qualities, and the arms to explain where it shows only their numbers."""

    figure: Figure
    legend: Sequence[Arm]


def pareto(data: ComparisonData) -> Pareto | None:
    """Identity against prompt following, one point an arm; None before an arm has both."""
    pair = data.pair
    if pair is None:
        return None
    rest = [arm for arm in data.arms if arm.weight is None and _point(data, arm, "") is not None]
    rest.sort(key=lambda arm: not arm.highlighted)
    numbered = len(rest) > NAMED
    points = [_point(data, arm, str(arm.number) if numbered else shorten(arm.title, 26)) for arm in rest]
    front = [_point(data, arm, f"w={arm.weight:g}") for arm in data.front]
    base = [data.base.get(metric) for metric in (pair.identity, pair.prompt)]
    beside: list[Point] = []
    if base[0] is not None and base[1] is not None:
        cross = Point("base", base[0], base[1], "base", "base", "cross")
        (beside if data.base_counts else points).append(cross)
    picture = scatter(
        [point for point in points if point is not None],
        beside=beside,
        front=[point for point in front if point is not None],
        title=f"{pair.prompt_name} against {pair.identity_name.lower()}, by arm",
        x_label=pair.identity_name.lower(),
        y_label=pair.prompt_name.lower(),
    )
    legend = sorted(rest, key=lambda arm: arm.number) if numbered else ()
    return Pareto(Figure("Identity against prompt", picture, _plane_caption(data)), legend)


def _plane_caption(data: ComparisonData) -> str:
    caption = (
        "Further right the subject is kept better, further up the prompt is followed better. Large points "
        "are means over the seeds at the end of training, whiskers their 95 % intervals, small dots the "
        "single runs. "
    )
    if data.front:
        caption += (
            "The line joins plain weighted sums in order of w, the constant weight of the prompt reward. An "
            "arm in the shade is matched or beaten on both qualities by one of them"
            + (" or by the base. " if data.base_counts else ". ")
        )
    return caption + "The cross is the base model. The numbers are in the table below."


def _point(data: ComparisonData, arm: Arm, label: str) -> Point | None:
    assert data.pair is not None
    x, y = (arm.interval("final", metric) for metric in (data.pair.identity, data.pair.prompt))
    if x is None or y is None:
        return None
    seeds = []
    for run in arm.finished:
        last = run["evals"][-1] if run.get("evals") else {}
        values = last.get(data.pair.identity), last.get(data.pair.prompt)
        if values[0] is not None and values[1] is not None:
            seeds.append((float(values[0]), float(values[1])))
    shape = "ring" if arm.weight is not None else "disc"
    return Point(arm.title, x, y, arm.colour, label, shape, seeds)


def shorten(words: str, longest: int = LONGEST_NAME) -> str:
    """The words, cut where a chart has no room for more."""
    return words if len(words) <= longest else words[: longest - 1].rstrip() + "\u2026"


@dataclass(frozen=True)
class Measure:
    """A curve to draw: which records hold it ("evals" or "train"), under which key, and how to read it."""

    kind: str
    key: str
    title: str
    caption: str
    least: float = 0.0


COPYING = (
    Measure(
        "evals",
        "monitor/copy_score",
        "Copy score",
        "0: as far from the reference as another honest picture of the subject; 1: the reference itself.",
        0.1,
    ),
    Measure(
        "evals",
        "monitor/background_similarity",
        "Background similarity",
        "Likeness to the reference outside the subject. A rise means that more of the scene is copied.",
        0.1,
    ),
)
SPREAD = (
    Measure(
        "train",
        "reward/prompt_group_std",
        "Spread of the prompt reward",
        "Standard deviation among the samples of one prompt. Near 0, normalising by it only amplifies noise.",
    ),
    Measure(
        "train",
        "reward/identity_group_std",
        "Spread of the identity reward",
        "Standard deviation among the samples of one prompt.",
    ),
)


def _qualities(data: ComparisonData) -> list[Measure]:
    if data.pair is None:
        return []
    higher = "Higher is better."
    return [
        Measure("evals", data.pair.identity, data.pair.identity_name, higher, 0.05),
        Measure("evals", data.pair.prompt, data.pair.prompt_name, higher, 0.05),
    ]


def curves(data: ComparisonData) -> Section:
    """Training curves of the highlighted arms; without figures before a run has finished."""
    arms = [arm for arm in data.arms if arm.highlighted]
    drawn = [_curves(data, arms, measure) for measure in (*_qualities(data), *COPYING, *SPREAD)]
    lead = (
        "Means over the finished runs of an arm; bands reach from the lowest to the highest seed, so they "
        "are no confidence intervals. The last two are from training, as rolling means; the others are "
        "held-out measures. Axes show the range that occurs; most do not start at 0."
    )
    return Section("Training curves", lead, [figure for figure in drawn if figure is not None])


def _curves(data: ComparisonData, arms: Sequence[Arm], measure: Measure) -> Figure | None:
    lines = [_line(arm, measure, shorten(arm.title), arm.colour, arm.weight is not None) for arm in arms]
    found = [line for line in lines if line is not None]
    if not found:
        return None
    base = data.base.get(measure.key) if measure.kind == "evals" else None
    picture = charts.line_chart(
        found,
        _axis(found),
        title=measure.title,
        levels=[Level("base", base.mean)] if base is not None else [],
        least=measure.least,
        size=WIDE,
        labels=NAMES,
    )
    return Figure(measure.title, picture, measure.caption)


def _axis(lines: Sequence[Line]) -> XAxis:
    return XAxis("rollouts", max(max(line.x) for line in lines))


def _line(arm: Arm, measure: Measure, name: str, colour: str, dashed: bool = False) -> Line | None:
    found = mean_curve(arm.finished, measure.kind, measure.key)
    if found is None:
        return None
    x, mean, low, high = found
    alone = len(arm.finished) == 1
    return Line(
        name,
        x,
        mean,
        colour,
        low=None if alone else low,
        high=None if alone else high,
        style="dashed" if dashed else "solid",
        dots=measure.kind == "evals" and len(x) <= 12,
        show_value=False,
    )


def mean_curve(
    runs: Sequence[Record], kind: str, key: str
) -> tuple[list[float], list[float], list[float], list[float]] | None:
    """A metric against rollouts over several runs, each position over the runs that have it there.

    Args:
        runs: Runs as in results.json.
        kind: "evals", or "train" for rolling means of every run.
        key: The metric.

    Returns:
        (rollouts, means, lowest, highest), or None when no run has the metric.
    """
    columns: dict[float, list[float]] = defaultdict(list)
    for run in runs:
        records = run.get(kind) or ()
        x = [float(record["rollouts"]) for record in records]
        y = [record.get(key) for record in records]
        if kind == "train" and x:
            x, y = bin_means(x, y)
            y = rolling_mean(y, len(y) // 16 * 2 + 1)
        for at, value in zip(x, y, strict=True):
            if value is not None:
                columns[at].append(float(value))
    if not columns:
        return None
    x = sorted(columns)
    means = [sum(columns[at]) / len(columns[at]) for at in x]
    return x, means, [min(columns[at]) for at in x], [max(columns[at]) for at in x]


@dataclass(frozen=True)
class Strip:
    """The small curves of one arm, side by side."""

    arm: Arm
    pictures: Sequence[Markup]


def strips(data: ComparisonData) -> list[Strip]:
    """Small curves of every arm that is not highlighted, with the same axes for all."""
    kinds: list[tuple[str, Sequence[Measure], Sequence[tuple[str, str]]]] = [
        ("qualities", _qualities(data), (("identity", "identity"), ("prompt", "prompt"))),
        ("copying", COPYING, (("copy", "copied"), ("background", "plain"))),
        ("spread", SPREAD, (("prompt", "prompt"), ("identity", "identity"))),
    ]
    arms = [arm for arm in data.arms if not arm.highlighted and arm.finished]
    drawn = [_small_charts(arms, *kind) for kind in kinds]
    found = [Strip(arm, [by_arm[arm.name] for by_arm in drawn if arm.name in by_arm]) for arm in arms]
    return [strip for strip in found if strip.pictures]


def _small_charts(
    arms: Sequence[Arm], title: str, measures: Sequence[Measure], styles: Sequence[tuple[str, str]]
) -> dict[str, Markup]:
    """One chart an arm, by name, with common axes; `styles` are (name, colour) of the measures."""
    lines = {
        arm.name: [
            line
            for measure, style in zip(measures, styles, strict=False)
            if (line := _line(arm, measure, *style)) is not None
        ]
        for arm in arms
    }
    every = [line for found in lines.values() for line in found]
    values = [
        v for line in every for part in (line.y, line.low, line.high) for v in part or () if v is not None
    ]
    if not values:
        return {}
    axis, y_range = _axis(every), domain(values, least=0.05)
    return {
        arm.name: charts.line_chart(
            lines[arm.name], axis, title=f"{arm.title}: {title}", y_range=y_range, size=SMALL
        )
        for arm in arms
        if lines[arm.name]
    }
