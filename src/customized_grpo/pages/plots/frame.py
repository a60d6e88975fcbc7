"""The plot area of a chart: scales, grid, and each kind of mark in data coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from customized_grpo.pages.plots import svg
from customized_grpo.pages.plots.scales import Scale, compact, spread, tick_labels, ticks

Values = Sequence[float | None]

WIDTH = 388
"""Width of a chart: what a phone of 420 pixels has between its margins, so that a unit is a pixel there."""
GUTTER = 46
"""Room for the tick labels of the y axis."""
LABELS = 118
"""Room for the names of the series, right of the plot."""
TEXT_GAP = 14
"""Smallest distance of two names."""
NAME_GAP = 7
"""Between the plot and the names."""
UNIT_GAP = 20
"""Between the plot and the unit of an axis; the last tick may reach half its width beyond the plot."""


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        name: Shown where the line ends.
        x: Positions.
        y: Values; None leaves a gap.
        colour: Name of a colour variable in charts.css, such as "prompt".
        low: Lower end of the interval at each point, drawn as a band with `high`.
        high: Upper end.
        raw: The values before smoothing, drawn faintly behind.
        raw_x: Positions of `raw`, if they are not `x`.
        style: "solid", "dashed" or "dotted".
        dots: Whether every point is marked (few, separately measured points).
        show_value: Whether the last value follows the name.
        note: What part of the measured points is drawn, in a sentence for the caption; empty if all are.
    """

    name: str
    x: Sequence[float]
    y: Values
    colour: str
    low: Values | None = None
    high: Values | None = None
    raw: Values | None = None
    raw_x: Sequence[float] | None = None
    style: str = "solid"
    dots: bool = False
    show_value: bool = True
    note: str = ""


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with, such as the base model, with an optional interval band.

    Attributes:
        name: Written where the line ends.
        y: Its height.
        low: Lower end of the band; None for no band.
        high: Upper end of the band.
    """

    name: str
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class XAxis:
    """The common x axis.

    Attributes:
        label: Unit of the ticks.
        high: Right end; the left end is 0.
        second_label: Unit of a second row of tick labels, or None.
        second_scale: Second unit per first unit.
        steps: Whether the unit is a denoising step: step i reaches from i to i + 1 and has its label in the
            middle; the second row says where noise and image are.
    """

    label: str
    high: float
    second_label: str | None = None
    second_scale: float = 0.0
    steps: bool = False


@dataclass(frozen=True)
class End:
    """The name of a series right of the plot.

    Attributes:
        name: The name.
        y: Where the series ends.
        colour: Name of a colour variable in charts.css.
        value: The number to write after the name; None for none.
    """

    name: str
    y: float
    colour: str
    value: float | None = None


class Frame:
    """The plot area: scales, grid, and the drawing of each kind of mark in data coordinates."""

    def __init__(
        self,
        axis: XAxis,
        y_range: tuple[float, float],
        size: tuple[int, int],
        percent: bool,
        labels: int = LABELS,
    ) -> None:
        width, height = size
        self.axis = axis
        self.percent = percent
        self.right = width - labels
        # room for two rows of text or for one
        self.bottom = height - (38 if axis.second_label or axis.steps else 24)
        # a run without a single rollout still needs an axis of some width
        self.x = Scale(0.0, max(axis.high, 1e-9), GUTTER, self.right)
        # pixels run downwards, so the smallest value is at the bottom; 8 units stay free above
        self.y = Scale(*y_range, self.bottom, 8)

    def grid(self, over: bool = False) -> Markup:
        """Return tick labels and hairlines; `over` draws the hairlines for use on top of filled areas."""
        # in a small chart the labels of more rows would touch
        rows = ticks(self.y.low, self.y.high, 4 if self.bottom < 160 else 5)
        parts = []
        for value, label in zip(rows, tick_labels(rows, self.percent), strict=True):
            y = svg.px(self.y(value))
            line = '<line class="grid{}" x1="{}" x2="{}" y1="{}" y2="{}"/>'
            parts.append(Markup(line).format(" over" if over else "", GUTTER, self.right, y, y))
            # text stands on its baseline: 4 units lower, its middle is at the hairline
            parts.append(svg.text(GUTTER - 8, self.y(value) + 4, label, "tick end"))
        parts += self._step_ticks() if self.axis.steps else self._x_ticks()
        return Markup("").join(parts)

    def _step_ticks(self) -> list[Markup]:
        count = round(self.x.high)
        every = max(1, -(-count // 13))  # at most 13 labels fit
        labels = [
            svg.text(self.x(step + 0.5), self.bottom + 16, str(step), "tick middle")
            for step in range(0, count, every)
        ]
        return [
            *labels,
            svg.text(GUTTER, self.bottom + 32, "noise", "unit"),
            svg.text(self.right, self.bottom + 32, "image", "unit end"),
            svg.text(self.right + UNIT_GAP, self.bottom + 16, self.axis.label, "unit"),
        ]

    def _x_ticks(self) -> list[Markup]:
        parts = self._tick_row(self.bottom + 16, 1.0, self.axis.label, "tick")
        if self.axis.second_label:
            parts += self._tick_row(self.bottom + 31, self.axis.second_scale, self.axis.second_label, "unit")
        return parts

    def _tick_row(self, y: float, scale: float, name: str, css: str) -> list[Markup]:
        """Return round numbers of one unit, each at its own place, and the name of the unit.

        Args:
            y: Height of the text.
            scale: How many of this unit make one unit of the axis.
            name: Written right of the plot.
            css: Class of the numbers.
        """
        parts = [svg.text(self.right + UNIT_GAP, y, name, "unit")]
        if scale <= 0:  # nothing was counted in this unit
            return parts
        # in a narrow plot the numbers of more ticks would touch
        count = 5 if self.right - GUTTER > 180 else 3
        # rollouts and iterations are whole
        values = ticks(0.0, self.x.high * scale, count, least=1.0)
        for value, label in zip(values, tick_labels(values), strict=True):
            # back to the unit of the axis: a value of the second row counts iterations
            parts.append(svg.text(self.x(value / scale), y, label, f"{css} middle"))
        return parts

    def path(self, x: Sequence[float], y: Values) -> str:
        """Return a polyline with gaps where y is None, clamped to the frame."""
        commands = []
        pen_up = True
        for position, value in zip(x, y, strict=True):
            if value is None:
                pen_up = True
                continue
            # raw outliers may leave the range; SVG would draw them over the names
            inside = min(max(value, self.y.low), self.y.high)
            commands.append(f"{'M' if pen_up else 'L'} {svg.px(self.x(position))} {svg.px(self.y(inside))}")
            pen_up = False
        return " ".join(commands)

    def line(self, line: Line) -> Markup:
        """Return one series: band, raw values, line, dots."""
        parts = [self._band(line.x, line.low, line.high)] if line.low and line.high else []
        if line.raw is not None:
            parts.append(
                Markup('<path class="raw" d="{}"/>').format(self.path(line.raw_x or line.x, line.raw))
            )
        parts.append(Markup('<path class="line {}" d="{}"/>').format(line.style, self.path(line.x, line.y)))
        points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None]
        # a path through one point is invisible
        if line.dots or len(points) == 1:
            dot = Markup('<circle class="dot" cx="{}" cy="{}" r="2.6"><title>{} at {}</title></circle>')
            for x, y in points:
                place = f"step {int(x)}" if self.axis.steps else f"{x:,.0f} {self.axis.label}"
                parts.append(dot.format(svg.px(self.x(x)), svg.px(self.y(y)), compact(y), place))
        return Markup('<g style="--c:var(--{})">{}</g>').format(line.colour, Markup("").join(parts))

    def _band(self, positions: Sequence[float], lows: Values, highs: Values) -> Markup:
        """Return the interval of a series, over the points that have one."""
        x: list[float] = []
        bottom: list[float] = []
        top: list[float] = []
        for position, low, high in zip(positions, lows, highs, strict=True):
            if low is not None and high is not None:
                x.append(position)
                bottom.append(low)
                top.append(high)
        if not x:
            return Markup("")
        # an area over one position has no width
        if len(x) == 1:
            whisker = Markup('<line class="whisker" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>')
            return whisker.format(svg.px(self.x(x[0])), svg.px(self.y(bottom[0])), svg.px(self.y(top[0])))
        # Along the top to the right and back along the bottom, whose first command (M) becomes a line (L).
        upper = self.path(x, top)
        lower = self.path(x[::-1], bottom[::-1])
        return Markup('<path class="band" d="{} L {} Z"/>').format(upper, lower[2:])

    def level(self, level: Level) -> Markup:
        """Return a dashed horizontal line with its interval."""
        parts = []
        if level.low is not None and level.high is not None:
            rect = Markup('<rect class="band" x="{}" y="{}" width="{}" height="{}"/>')
            top = self.y(level.high)
            height = self.y(level.low) - top
            parts.append(rect.format(GUTTER, svg.px(top), self.right - GUTTER, svg.px(height)))
        line = Markup('<line class="line dashed thin" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        y = svg.px(self.y(level.y))
        parts.append(line.format(GUTTER, self.right, y, y))
        return Markup('<g style="--c:var(--base)">{}</g>').format(Markup("").join(parts))

    def mark(self, x: float, text: str) -> Markup:
        """Return a vertical hairline with a flag, for an event."""
        # rounding may put the last event a little beyond the axis
        at = svg.px(self.x(min(x, self.x.high)))
        flag = (
            '<g class="mark"><line x1="{0}" x2="{0}" y1="8" y2="{1}"/><path d="M {0} 8 l 7 3.5 l -7 3.5 Z"/>'
        )
        return Markup(flag + "<title>{2}</title></g>").format(at, svg.px(self.bottom), text)

    def names(self, ends: Sequence[End]) -> Markup:
        """Return the names of the series right of the plot, each near its end and all kept apart."""
        tops = spread([self.y(end.y) for end in ends], TEXT_GAP, 10, self.bottom)
        label = Markup('<text class="name" style="--c:var(--{})" x="{}" y="{}">{}{}</text>')
        parts = []
        for end, top in zip(ends, tops, strict=True):
            value = self._value(end.value)
            parts.append(label.format(end.colour, self.right + NAME_GAP, svg.px(top + 4), end.name, value))
        return Markup("").join(parts)

    def _value(self, value: float | None) -> Markup:
        if value is None:
            return Markup("")
        number = f"{value:.0%}".replace("%", " %") if self.percent else compact(value)
        return Markup(' <tspan class="value">{}</tspan>').format(number)


def measured(values: Values | None) -> list[float]:
    """Return the values that are not None."""
    return [value for value in values or () if value is not None]
