"""Charts as inline SVG: lines with bands, stacked areas, step weights, a split bar.

Pure functions from numbers to `Markup`. They are drawn by hand and not by a plotting library, because the
pages must follow the reader's light or dark theme, print well, load nothing and be read by screen readers:
colours are CSS variables (``templates/charts.css``), so one image serves all themes, and every series is
named where it ends, so that colour is never the only key. Geometry is in the units of the viewBox; one unit
is about one CSS pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from customized_grpo.pages.plots import svg
from customized_grpo.pages.plots.frame import LABELS, WIDTH, End, Frame, Level, Line, Values, XAxis, measured
from customized_grpo.pages.plots.scales import compact, domain

SIZE = (WIDTH, 204)
"""Width and height of a chart, in units of the viewBox."""

SMALL = (WIDTH, 170)
"""The same of a chart that says less."""


@dataclass(frozen=True)
class Area:
    """One share of a stacked area.

    Attributes:
        name: Written where the area ends.
        colour: Name of a colour variable in charts.css.
        shares: Values in [0, 1]; None counts as 0.
    """

    name: str
    colour: str
    shares: Values


@dataclass(frozen=True)
class Part:
    """One part of a split bar.

    Attributes:
        name: Written below the bar.
        colour: Name of a colour variable in charts.css.
        amount: Its size, not negative.
    """

    name: str
    colour: str
    amount: float


def line_chart(
    lines: Sequence[Line],
    axis: XAxis,
    *,
    title: str,
    levels: Sequence[Level] = (),
    marks: Sequence[tuple[float, str]] = (),
    y_range: tuple[float, float] | None = None,
    least: float = 0.0,
    percent: bool = False,
    size: tuple[int, int] = SIZE,
    labels: int = LABELS,
) -> Markup:
    """Return lines over a common x axis.

    Args:
        lines: The series; at least one value in all.
        axis: The x axis.
        title: Read out by screen readers in place of the image.
        levels: Horizontal lines to compare with.
        marks: Vertical hairlines (x, text) for events; the text is a tooltip.
        y_range: Fixed range of y; by default what the values need.
        least: Smallest range of y, so that a change too small to matter does not fill the image.
        percent: Whether y is a share, shown in per cent.
        size: Width and height of the viewBox.
        labels: Room for the names of the series, right of the plot.

    Raises:
        ValueError: Nothing to draw.
    """
    numbers = _numbers(lines, levels)
    if not numbers:
        raise ValueError(f"chart {title!r} has no values")
    frame = Frame(axis, y_range or domain(numbers, least=least), size, percent, labels)
    # SVG has no z-index: what comes later lies on top
    parts = [frame.grid(), *(frame.mark(x, text) for x, text in marks)]
    parts += [frame.level(level) for level in levels]
    parts += [frame.line(line) for line in lines]
    ends = [End(level.name, level.y, "base", level.y) for level in levels]
    for line in lines:
        values = measured(line.y)
        if values:
            ends.append(End(line.name, values[-1], line.colour, values[-1] if line.show_value else None))
    parts.append(frame.names(ends))
    return svg.chart(size, title, parts)


def _numbers(lines: Sequence[Line], levels: Sequence[Level]) -> list[float]:
    """Return the values that the y axis must show."""
    numbers: list[float] = []
    raw: list[float] = []
    for line in lines:
        numbers += measured(line.y) + measured(line.low) + measured(line.high)
        raw += measured(line.raw)
    for level in levels:
        numbers += measured((level.y, level.low, level.high))
    if numbers and raw:
        # Single noisy iterations must not flatten the curve: the outer 2 % on each side may leave the frame.
        raw.sort()
        outliers = len(raw) // 50
        numbers += [raw[outliers], raw[-1 - outliers]]
    return numbers


def stacked_area(
    x: Sequence[float],
    areas: Sequence[Area],
    axis: XAxis,
    *,
    title: str,
    size: tuple[int, int] = SIZE,
) -> Markup:
    """Return shares of a whole over time, stacked from the bottom in the order given.

    Args:
        x: At least two positions.
        areas: The shares; at each x they add up to 1.
        axis: The x axis.
        title: Read out by screen readers.
        size: Width and height of the viewBox.

    Raises:
        ValueError: Fewer than two positions.
    """
    if len(x) < 2:
        raise ValueError("an area needs two positions")
    frame = Frame(axis, (0.0, 1.0), size, percent=True)
    floor = [0.0] * len(x)
    shapes: list[Markup] = []
    ends: list[End] = []
    outline = Markup('<path class="area" style="--c:var(--{})" d="{}"/>')
    for area in areas:
        top = [low + (share or 0.0) for low, share in zip(floor, area.shares, strict=True)]
        # Along the top to the right and back along the bottom, whose first command (M) becomes a line (L).
        path = frame.path(x, top) + " L " + frame.path(x[::-1], floor[::-1])[2:] + " Z"
        # the floor of the next area is the top of this one
        shapes.append(outline.format(area.colour, path))
        # its name stands at the middle of its right edge
        middle = (top[-1] + floor[-1]) / 2
        ends.append(End(area.name, middle, area.colour, area.shares[-1] or 0.0))
        floor = top
    # the grid after the areas, which would cover it
    return svg.chart(size, title, [*shapes, frame.grid(over=True), frame.names(ends)])


def step_weights(
    weights: Sequence[float], *, title: str, trained: Sequence[bool], size: tuple[int, int] = SIZE
) -> Markup:
    """Return the weights of both rewards at every denoising step, one divided bar a step.

    Args:
        weights: The prompt weight of each step; identity has the rest.
        title: Read out by screen readers.
        trained: Whether a step is ever trained; the others are drawn pale.
        size: Width and height of the viewBox.
    """
    count = len(weights)
    frame = Frame(XAxis("step", count, steps=True), (0.0, 1.0), size, percent=True)
    width = frame.x(1) - frame.x(0)
    # a share of the width, or the gaps of many narrow steps would eat the bars
    gap = min(2.0, width * 0.2)
    rect = Markup(
        '<rect class="bar{}" style="--c:var(--{})" x="{}" y="{}" width="{}" height="{}">'
        "<title>{}</title></rect>"
    )
    bars = []
    for step, (weight, is_trained) in enumerate(zip(weights, trained, strict=True)):
        left = svg.px(frame.x(step) + gap / 2)
        tone = "" if is_trained else " pale"
        note = "" if is_trained else ", not trained"
        for colour, low, high in (("prompt", 0.0, weight), ("identity", weight, 1.0)):
            top = svg.px(frame.y(high))
            height = svg.px(frame.y(low) - frame.y(high))
            tip = f"step {step}: {colour} {high - low:.2f}{note}"
            bars.append(rect.format(tone, colour, left, top, svg.px(width - gap), height, tip))
    # Names stand at the mean middle of each colour.
    middle = sum(weights) / (2 * count)
    ends = [End("prompt", middle, "prompt"), End("identity", 0.5 + middle, "identity")]
    return svg.chart(size, title, [frame.grid(over=True), *bars, frame.names(ends)])


def split_bar(parts: Sequence[Part], *, title: str, unit: str = "s") -> Markup:
    """Return one horizontal bar divided among parts, whose amounts are not all 0, with a key below.

    The key is text of the page and no part of the image: an image as wide as the page would shrink it to
    nothing on a phone.
    """
    total = sum(part.amount for part in parts)
    piece = Markup('<i style="--c:var(--{}); flex-grow:{}"></i>')
    entry = Markup('<span><i class="patch" style="--c:var(--{})"></i>{}</span> ')
    pieces: list[Markup] = []
    entries: list[Markup] = []
    for part in parts:
        share = part.amount / total
        # flex-grow divides whatever width the page has; pixels would fix it
        pieces.append(piece.format(part.colour, f"{share:.4f}"))
        words = f"{part.name} {share:.0%} \u00b7 {compact(part.amount)} {unit}"
        entries.append(entry.format(part.colour, words))
    bar = Markup('<div class="divided" role="img" aria-label="{}">{}</div>').format(
        title, Markup("").join(pieces)
    )
    key = Markup('<p class="patches">{}</p>').format(Markup("").join(entries))
    return Markup("<div>{}{}</div>").format(bar, key)
