"""A scatter plot as inline SVG: two qualities of many arms with intervals, and the front of one family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from customized_grpo.pages.plots import svg
from customized_grpo.pages.plots.labels import MARKER, Box, place_labels
from customized_grpo.pages.plots.numbers import Interval, number
from customized_grpo.pages.plots.scales import Scale, domain, tick_labels, ticks

LEFT, TOP, MARGIN, BELOW = 50, 8, 10, 42
"""Room around the plot: for the ticks of y, above, to the right, and for the ticks and the name of x."""


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
    x: Interval
    y: Interval
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
    size: tuple[int, int] = (480, 420),
) -> Markup:
    """Points with whiskers in both directions; what the front dominates is shaded.

    Args:
        points: Those not on the front; the first lies on top and its label has the first choice of a place.
        title: Read out by screen readers in place of the picture.
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
    parts += [plane.spread(point) for point in reversed(everything)]
    parts += [plane.marker(point) for point in reversed(everything)]
    parts.append(plane.labels(everything, front))
    return svg.picture(size, title, [part for part in parts if part], css="chart scatter")


def dominated_region(
    front: Sequence[tuple[float, float]], corner: tuple[float, float]
) -> list[tuple[float, float]]:
    """The outline of all points that some point of the front beats or equals in both directions.

    Args:
        front: (x, y) of each; those that another one dominates do not matter.
        corner: Where the region ends, below and left of all of them.

    Returns:
        Corners of a closed polygon with horizontal and vertical sides; empty for an empty front.
    """
    outline, height = [corner], corner[1]
    for x, y in sorted(front, reverse=True):
        if y > height:
            outline += [(x, height), (x, y)]
            height = y
    return [*outline, (corner[0], height)] if front else []


class _Plane:
    """The plot area: two scales that hold every mean, interval and seed, and what is drawn in them."""

    def __init__(self, points: Sequence[Point], size: tuple[int, int]) -> None:
        width, height = size
        ranges = []
        for axis, part in enumerate(("x", "y")):
            spans = [getattr(point, part) for point in points]
            values = [v for span in spans for v in (span.mean, span.low, span.high) if v is not None]
            values += [seed[axis] for point in points for seed in point.seeds]
            ranges.append(domain(values, least=0.01))
        self.x = Scale(*ranges[0], LEFT, width - MARGIN)
        self.y = Scale(*ranges[1], height - BELOW, TOP)
        self.frame = Box(LEFT, TOP, width - MARGIN, height - BELOW)

    def grid(self, x_label: str, y_label: str) -> Markup:
        """Hairlines with their numbers, and the names of the axes."""
        frame, line = self.frame, Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        rows, columns = ticks(self.y.low, self.y.high, 6), ticks(self.x.low, self.x.high, 6)
        parts = []
        for value, label in zip(rows, tick_labels(rows), strict=True):
            y = self.y(value)
            parts.append(line.format(frame.left, frame.right, svg.px(y), svg.px(y)))
            parts.append(svg.text(frame.left - 7, y + 4, label, "tick end"))
        for value, label in zip(columns, tick_labels(columns), strict=True):
            x = svg.px(self.x(value))
            parts.append(line.format(x, x, frame.top, frame.bottom))
            parts.append(svg.text(self.x(value), frame.bottom + 16, label, "tick middle"))
        parts.append(svg.text(frame.right, frame.bottom + 35, f"{x_label} \u2192", "axis end"))
        middle = (frame.top + frame.bottom) / 2
        name = '<text class="axis middle" transform="translate(11 {}) rotate(-90)">{} \u2192</text>'
        parts.append(Markup(name).format(svg.px(middle), y_label))
        return Markup("").join(parts)

    def shade(self, front: Sequence[Point]) -> Markup:
        """The region that these points dominate, as far as the plot reaches."""
        corner = (self.x.low, self.y.low)
        outline = dominated_region([(point.x.mean, point.y.mean) for point in front], corner)
        if not outline:
            return Markup("")
        path = " L ".join(f"{svg.px(self.x(x))} {svg.px(self.y(y))}" for x, y in outline)
        return Markup('<path class="shade" d="M {} Z"/>').format(path)

    def join(self, front: Sequence[Point]) -> Markup:
        """The line through the front."""
        if len(front) < 2:
            return Markup("")
        path = " L ".join(f"{svg.px(self.x(p.x.mean))} {svg.px(self.y(p.y.mean))}" for p in front)
        return Markup('<path class="front" d="M {}"/>').format(path)

    def spread(self, point: Point) -> Markup:
        """The seeds and the two whiskers of a point."""
        parts = [
            Markup('<circle class="seed" cx="{}" cy="{}" r="2"/>').format(
                svg.px(self.x(x)), svg.px(self.y(y))
            )
            for x, y in point.seeds
        ]
        line = Markup('<line class="whisker thin" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        for left, top, right, bottom in self._whiskers(point):
            parts.append(line.format(svg.px(left), svg.px(right), svg.px(top), svg.px(bottom)))
        return _group(point, parts)

    def marker(self, point: Point) -> Markup:
        """The point itself."""
        x, y = self.x(point.x.mean), self.y(point.y.mean)
        tip = f"{point.name}: {_words(point.x)}; {_words(point.y)}"
        if point.shape == "cross":
            shape = Markup('<path class="cross" d="M {} {} l 9 9 m 0 -9 l -9 9">').format(
                svg.px(x - 4.5), svg.px(y - 4.5)
            )
            return _group(point, [shape, Markup("<title>{}</title></path>").format(tip)])
        circle = '<circle class="{}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>'
        style, radius = ("dot", 4) if point.shape == "ring" else ("point", 5)
        return _group(point, [Markup(circle).format(style, svg.px(x), svg.px(y), radius, tip)])

    def labels(self, points: Sequence[Point], front: Sequence[Point]) -> Markup:
        """The labels, each with a thin line to its point where it had to move away."""
        centres = [(self.x(point.x.mean), self.y(point.y.mean)) for point in points]
        avoid = [Box(a - 2, b - 2, c + 2, d + 2) for p in points for a, b, c, d in self._whiskers(p)]
        avoid += _along([(self.x(point.x.mean), self.y(point.y.mean)) for point in front])
        boxes = place_labels(centres, [point.label for point in points], self.frame, avoid)
        leaders, words = [], []
        for point, (x, y), box in zip(points, centres, boxes, strict=True):
            if not point.label:
                continue
            end_x, end_y = box.nearest(x, y)
            if max(abs(end_x - x), abs(end_y - y)) > 1.5 * MARKER:
                line = '<line class="leader" style="--c:var(--{})" x1="{}" y1="{}" x2="{}" y2="{}"/>'
                leaders.append(Markup(line).format(point.colour, *map(svg.px, (x, y, end_x, end_y))))
            anchor, at = "middle", (box.left + box.right) / 2
            if box.left > x:
                anchor, at = "start", box.left
            elif box.right < x:
                anchor, at = "end", box.right
            label = '<text class="name {}" style="--c:var(--{})" x="{}" y="{}">{}</text>'
            place = svg.px(at), svg.px(box.bottom - 3)
            words.append(Markup(label).format(anchor, point.colour, *place, point.label))
        return Markup("").join([*leaders, *words])

    def _whiskers(self, point: Point) -> list[tuple[float, float, float, float]]:
        """(left, top, right, bottom) of the lines that have both ends."""
        x, y = self.x(point.x.mean), self.y(point.y.mean)
        lines = []
        if point.x.low is not None and point.x.high is not None:
            lines.append((self.x(point.x.low), y, self.x(point.x.high), y))
        if point.y.low is not None and point.y.high is not None:
            lines.append((x, self.y(point.y.high), x, self.y(point.y.low)))
        return lines


def _group(point: Point, parts: Sequence[Markup]) -> Markup:
    group = Markup('<g style="--c:var(--{})">{}</g>')
    return group.format(point.colour, Markup("").join(parts)) if parts else Markup("")


def _words(span: Interval) -> str:
    if span.low is None or span.high is None:
        return number(span.mean)
    return f"{number(span.mean)} ({number(span.low)} to {number(span.high)})"


def _along(line: Sequence[tuple[float, float]]) -> list[Box]:
    """Small boxes along a polyline."""
    boxes = []
    for (a, b), (c, d) in zip(line, line[1:], strict=False):
        count = max(1, int(max(abs(c - a), abs(d - b)) / 6))
        for index in range(count + 1):
            x, y = a + (c - a) * index / count, b + (d - b) * index / count
            boxes.append(Box(x - 3, y - 3, x + 3, y + 3))
    return boxes
