"""A scatter plot as inline SVG: two qualities of many arms with intervals, and the front of one family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from customized_grpo.pages.plots import svg
from customized_grpo.pages.plots.frame import WIDTH
from customized_grpo.pages.plots.labels import MARKER, Box, place_labels
from customized_grpo.pages.plots.numbers import Measurement, interval_text, number
from customized_grpo.pages.plots.scales import Scale, domain, tick_labels, ticks

LEFT, TOP, MARGIN, BELOW = 52, 8, 10, 40
"""Room around the plot: for the ticks of y, above, to the right, and for the ticks and the name of x."""


SIZE = (WIDTH, 372)
"""Width and height of the plane, in units of the viewBox."""


@dataclass(frozen=True)
class Point:
    """One arm.

    Attributes:
        name: Shown as a tooltip, with the numbers.
        x: Mean and interval; the ends may be None.
        y: The same for the other quality.
        colour: Name of a colour variable in charts.css.
        label: Drawn beside the point; may be empty.
        shape: "disc", "ring" or "cross".
        seeds: (x, y) of single runs, drawn faintly.
    """

    name: str
    x: Measurement
    y: Measurement
    colour: str
    label: str = ""
    shape: str = "disc"
    seeds: Sequence[tuple[float, float]] = ()


def scatter(
    points: Sequence[Point],
    *,
    title: str,
    x_label: str,
    y_label: str,
    front: Sequence[Point] = (),
    beside: Sequence[Point] = (),
    size: tuple[int, int] = SIZE,
) -> Markup:
    """Return points with whiskers in both directions; what the front dominates is shaded.

    Args:
        points: Those not on the front; the first lies on top and its label has the first choice of a place.
        title: Read out by screen readers in place of the image.
        x_label: Name of the x axis; up to the right is better.
        y_label: Name of the y axis.
        front: Points of a family, joined in the order given.
        beside: Points that are not joined to the front but dominate with it, such as the base.
        size: Width and height of the viewBox.

    Raises:
        ValueError: Nothing to draw.
    """
    everything = [*front, *points, *beside]
    if not everything:
        raise ValueError(f"plot {title!r} has no points")
    plane = _Plane(everything, size)
    parts = [plane.shade([*front, *beside]), plane.grid(x_label, y_label), plane.join(front)]
    # reversed, because SVG draws in order, and the first point is to lie on top
    parts += [plane.spread(point) for point in reversed(everything)]
    parts += [plane.marker(point) for point in reversed(everything)]
    parts.append(plane.labels(everything, front))
    return svg.chart(size, title, [part for part in parts if part], css="chart scatter")


def dominated_region(
    front: Sequence[tuple[float, float]], corner: tuple[float, float]
) -> list[tuple[float, float]]:
    """Return the outline of all points that some point of the front beats or equals in both directions.

    Args:
        front: (x, y) of each; those that another one dominates do not matter.
        corner: Where the region ends, below and left of all of them.

    Returns:
        Corners of a closed polygon with horizontal and vertical sides; empty for an empty front.
    """
    outline = [corner]
    height = corner[1]
    # from the right: a point that is lower than one further right is dominated, and makes no corner
    for x, y in sorted(front, reverse=True):
        if y > height:
            outline += [(x, height), (x, y)]
            height = y
    return [*outline, (corner[0], height)] if front else []


class _Plane:
    """The plot area: two scales that hold every mean, interval and seed, and what is drawn in them."""

    def __init__(self, points: Sequence[Point], size: tuple[int, int]) -> None:
        width, height = size
        xs: list[float] = []
        ys: list[float] = []
        for point in points:
            xs += [*point.x.values, *(x for x, _ in point.seeds)]
            ys += [*point.y.values, *(y for _, y in point.seeds)]
        # a range of 0.01 at least: arms that hardly differ must not look far apart
        self.x = Scale(*domain(xs, least=0.01), LEFT, width - MARGIN)
        # pixels run downwards, so the smallest value is at the bottom
        self.y = Scale(*domain(ys, least=0.01), height - BELOW, TOP)
        self.frame = Box(LEFT, TOP, width - MARGIN, height - BELOW)

    def grid(self, x_label: str, y_label: str) -> Markup:
        """Return hairlines with their numbers, and the names of the axes."""
        frame = self.frame
        line = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        rows = ticks(self.y.low, self.y.high, 6)
        columns = ticks(self.x.low, self.x.high, 6)
        parts = []
        for value, label in zip(rows, tick_labels(rows), strict=True):
            y = self.y(value)
            parts.append(line.format(frame.left, frame.right, svg.px(y), svg.px(y)))
            parts.append(svg.text(frame.left - 7, y + 4, label, "tick end"))
        for value, label in zip(columns, tick_labels(columns), strict=True):
            x = svg.px(self.x(value))
            parts.append(line.format(x, x, frame.top, frame.bottom))
            parts.append(svg.text(self.x(value), frame.bottom + 16, label, "tick middle"))
        parts.append(svg.text(frame.right, frame.bottom + 33, f"{x_label} \u2192", "axis end"))
        middle = (frame.top + frame.bottom) / 2
        name = '<text class="axis middle" transform="translate(11 {}) rotate(-90)">{} \u2192</text>'
        parts.append(Markup(name).format(svg.px(middle), y_label))
        return Markup("").join(parts)

    def shade(self, front: Sequence[Point]) -> Markup:
        """Return the region that these points dominate, as far as the plot reaches."""
        corner = (self.x.low, self.y.low)
        outline = dominated_region([(point.x.mean, point.y.mean) for point in front], corner)
        if not outline:
            return Markup("")
        path = " L ".join(f"{svg.px(self.x(x))} {svg.px(self.y(y))}" for x, y in outline)
        return Markup('<path class="shade" d="M {} Z"/>').format(path)

    def join(self, front: Sequence[Point]) -> Markup:
        """Return the line through the front."""
        if len(front) < 2:
            return Markup("")
        path = " L ".join(f"{svg.px(self.x(p.x.mean))} {svg.px(self.y(p.y.mean))}" for p in front)
        return Markup('<path class="front" d="M {}"/>').format(path)

    def spread(self, point: Point) -> Markup:
        """Return the seeds and the two whiskers of a point."""
        dot = Markup('<circle class="seed" cx="{}" cy="{}" r="1.6"/>')
        parts = [dot.format(svg.px(self.x(x)), svg.px(self.y(y))) for x, y in point.seeds]
        line = Markup('<line class="whisker thin" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        for whisker in self._whiskers(point):
            # The whisker is a box without width or height.
            ends = (whisker.left, whisker.right, whisker.top, whisker.bottom)
            parts.append(line.format(*map(svg.px, ends)))
        return _group(point, parts)

    def marker(self, point: Point) -> Markup:
        """Return the point itself."""
        x, y = self._centre(point)
        tip = f"{point.name}: {_words(point.x)}; {_words(point.y)}"
        if point.shape == "cross":
            cross = Markup('<path class="cross" d="M {} {} l 9 9 m 0 -9 l -9 9"><title>{}</title></path>')
            return _group(point, [cross.format(svg.px(x - 4.5), svg.px(y - 4.5), tip)])
        circle = Markup('<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>')
        style, radius = ("dot", 3.5) if point.shape == "ring" else ("point", 4)
        return _group(point, [circle.format(style, svg.px(x), svg.px(y), radius, tip)])

    def labels(self, points: Sequence[Point], front: Sequence[Point]) -> Markup:
        """Return the labels, each with a thin line to its point where it had to move away."""
        centres = [self._centre(point) for point in points]
        avoid: list[Box] = []
        for point in points:
            avoid += [whisker.grown(2) for whisker in self._whiskers(point)]
        avoid += _along([self._centre(point) for point in front])
        boxes = place_labels(centres, [point.label for point in points], self.frame, avoid)
        leaders: list[Markup] = []
        words: list[Markup] = []
        for point, centre, box in zip(points, centres, boxes, strict=True):
            if point.label:
                leaders.append(_leader(point, centre, box))
                words.append(_label(point, centre, box))
        return Markup("").join([*leaders, *words])

    def _centre(self, point: Point) -> tuple[float, float]:
        """Return where the point itself is, in pixels."""
        return self.x(point.x.mean), self.y(point.y.mean)

    def _whiskers(self, point: Point) -> list[Box]:
        """Return the lines that have both ends, as boxes without width or height."""
        x, y = self._centre(point)
        lines = []
        if point.x.low is not None and point.x.high is not None:
            lines.append(Box(self.x(point.x.low), y, self.x(point.x.high), y))
        if point.y.low is not None and point.y.high is not None:
            lines.append(Box(x, self.y(point.y.high), x, self.y(point.y.low)))
        return lines


def _leader(point: Point, centre: tuple[float, float], box: Box) -> Markup:
    """Return a thin line from a point to its label where the label had to move away; else nothing."""
    x, y = centre
    end_x, end_y = box.nearest(x, y)
    # so near that it cannot be taken for another point's name
    if max(abs(end_x - x), abs(end_y - y)) <= 1.5 * MARKER:
        return Markup("")
    line = Markup('<line class="leader" style="--c:var(--{})" x1="{}" y1="{}" x2="{}" y2="{}"/>')
    return line.format(point.colour, *map(svg.px, (x, y, end_x, end_y)))


def _label(point: Point, centre: tuple[float, float], box: Box) -> Markup:
    """Return the text of a label, anchored at the side of its box that is nearer to the point."""
    x, _ = centre
    if box.left > x:
        anchor, position = "start", box.left
    elif box.right < x:
        anchor, position = "end", box.right
    else:
        anchor, position = "middle", (box.left + box.right) / 2
    label = Markup('<text class="name {}" style="--c:var(--{})" x="{}" y="{}">{}</text>')
    # the baseline, above the room for descenders
    return label.format(anchor, point.colour, svg.px(position), svg.px(box.bottom - 3), point.label)


def _group(point: Point, parts: Sequence[Markup]) -> Markup:
    group = Markup('<g style="--c:var(--{})">{}</g>')
    return group.format(point.colour, Markup("").join(parts)) if parts else Markup("")


def _words(measurement: Measurement) -> str:
    interval = interval_text(measurement)
    return f"{number(measurement.mean)} ({interval})" if interval else number(measurement.mean)


def _along(line: Sequence[tuple[float, float]]) -> list[Box]:
    """Return small boxes along a polyline, one every 6 pixels."""
    boxes = []
    for (x1, y1), (x2, y2) in pairwise(line):
        count = max(1, int(max(abs(x2 - x1), abs(y2 - y1)) / 6))
        for index in range(count + 1):
            x = x1 + (x2 - x1) * index / count
            y = y1 + (y2 - y1) * index / count
            # 6 pixels wide, as far apart as the points: the boxes touch
            boxes.append(Box(x, y, x, y).grown(3))
    return boxes
