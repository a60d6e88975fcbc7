"""Charts as inline SVG: lines with bands, stacked areas, step weights, a split bar.

Pure functions from numbers to `Markup`. Colours are CSS variables (``templates/charts.css``), so one picture
serves light, dark and print; every series is named where it ends, so that colour is never the only key.
Geometry is in the units of the viewBox; one unit is about one CSS pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from customized_grpo.pages.plots import svg
from customized_grpo.pages.plots.scales import Scale, compact, domain, spread, tick_labels, ticks

Values = Sequence[float | None]

GUTTER = 60
"""Room for the tick labels of the y axis."""
LABELS = 104
"""Room for the names of the series, right of the plot."""
TEXT_GAP = 14


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
        style: "solid", "dashed" or "dotted".
        dots: Whether every point is marked (few, separately measured points).
        show_value: Whether the last value follows the name.
    """

    name: str
    x: Sequence[float]
    y: Values
    colour: str
    low: Values | None = None
    high: Values | None = None
    raw: Values | None = None
    style: str = "solid"
    dots: bool = False
    show_value: bool = True


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with, such as the base model, with an optional interval band."""

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
            middle; the second row says where noise and picture are.
    """

    label: str
    high: float
    second_label: str | None = None
    second_scale: float = 0.0
    steps: bool = False


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
    size: tuple[int, int] = (480, 236),
    labels: int = LABELS,
) -> Markup:
    """Lines over a common x axis.

    Args:
        lines: The series; at least one value in all.
        axis: The x axis.
        title: Read out by screen readers in place of the picture.
        levels: Horizontal lines to compare with.
        marks: Vertical hairlines (x, text) for events; the text is a tooltip.
        y_range: Fixed range of y; by default what the values need.
        least: Smallest range of y, so that a change too small to matter does not fill the picture.
        percent: Whether y is a share, shown in per cent.
        size: Width and height of the viewBox.
        labels: Room for the names of the series, right of the plot.

    Raises:
        ValueError: Nothing to draw.
    """
    numbers = [v for line in lines for part in (line.y, line.low, line.high) for v in _known(part)]
    numbers += [v for level in levels for v in (level.y, level.low, level.high) if v is not None]
    if not numbers:
        raise ValueError(f"chart {title!r} has no values")
    raw = sorted(v for line in lines for v in _known(line.raw))
    if raw:  # single noisy iterations must not flatten the curve: they may leave the frame
        numbers += [raw[len(raw) // 50], raw[-1 - len(raw) // 50]]
    frame = _Frame(axis, y_range or domain(numbers, least=least), size, percent, labels)
    parts = [frame.grid(), *(frame.mark(x, text) for x, text in marks)]
    parts += [frame.level(level) for level in levels]
    parts += [frame.line(line) for line in lines]
    ends: list[tuple[str, float, str, float | None]] = [
        (level.name, level.y, "base", level.y) for level in levels
    ]
    for line in lines:
        last = next((v for v in reversed(line.y) if v is not None), None)
        if last is not None:
            ends.append((line.name, last, line.colour, last if line.show_value else None))
    parts.append(frame.names(ends))
    return svg.picture(size, title, parts)


def stacked_area(
    x: Sequence[float],
    shares: Sequence[tuple[str, str, Values]],
    axis: XAxis,
    *,
    title: str,
    size: tuple[int, int] = (480, 236),
) -> Markup:
    """Shares of a whole over time, stacked from the bottom in the order given.

    Args:
        x: At least two positions.
        shares: (name, colour, values in [0, 1]); at each x they add up to 1. None counts as 0.
        axis: The x axis.
        title: Read out by screen readers.
        size: Width and height of the viewBox.

    Raises:
        ValueError: Fewer than two positions.
    """
    if len(x) < 2:
        raise ValueError("an area needs two positions")
    frame = _Frame(axis, (0.0, 1.0), size, percent=True)
    floor = [0.0] * len(x)
    areas, ends = [], []
    for name, colour, values in shares:
        top = [low + (value or 0.0) for low, value in zip(floor, values, strict=True)]
        path = frame.path(x, top) + " L " + frame.path(x[::-1], floor[::-1])[2:] + " Z"
        areas.append(Markup('<path class="area" style="--c:var(--{})" d="{}"/>').format(colour, path))
        ends.append((name, (top[-1] + floor[-1]) / 2, colour, values[-1] or 0.0))
        floor = top
    return svg.picture(size, title, [*areas, frame.grid(over=True), frame.names(ends)])


def step_weights(
    weights: Sequence[float], *, title: str, trained: Sequence[bool], size: tuple[int, int] = (480, 236)
) -> Markup:
    """Prompt and identity weight at every denoising step: one bar a step, divided at the prompt weight.

    Args:
        weights: The prompt weight of each step; identity has the rest.
        title: Read out by screen readers.
        trained: Whether a step is ever trained; the others are drawn pale.
        size: Width and height of the viewBox.
    """
    count = len(weights)
    frame = _Frame(XAxis("step", count, steps=True), (0.0, 1.0), size, percent=True)
    width = frame.x(1) - frame.x(0)
    gap = min(2.0, width * 0.2)
    bars = []
    for step, (weight, live) in enumerate(zip(weights, trained, strict=True)):
        left, tone = frame.x(step) + gap / 2, "" if live else " pale"
        for colour, low, high in (("prompt", 0.0, weight), ("identity", weight, 1.0)):
            tip = f"step {step}: {colour} {high - low:.2f}" + ("" if live else ", not trained")
            bars.append(
                Markup(
                    '<rect class="bar{}" style="--c:var(--{})" x="{}" y="{}" width="{}" height="{}">'
                ).format(
                    tone,
                    colour,
                    svg.px(left),
                    svg.px(frame.y(high)),
                    svg.px(width - gap),
                    svg.px(frame.y(low) - frame.y(high)),
                )
                + Markup("<title>{}</title></rect>").format(tip)
            )
    middle = sum(weights) / (2 * count)
    ends = [("prompt", middle, "prompt", None), ("identity", 0.5 + middle, "identity", None)]
    return svg.picture(size, title, [frame.grid(over=True), *bars, frame.names(ends)])


def split_bar(parts: Sequence[tuple[str, str, float]], *, title: str, unit: str = "s") -> Markup:
    """One horizontal bar divided among (name, colour, amount), amounts not negative and not all 0."""
    total = sum(amount for _, _, amount in parts)
    scale = Scale(0, total, 0, 960)
    shapes, left = [], 0.0
    for index, (name, colour, amount) in enumerate(parts):
        x, width = scale(left), scale(amount)
        shapes.append(
            Markup('<rect class="bar" style="--c:var(--{})" x="{}" y="0" width="{}" height="20"/>').format(
                colour, svg.px(x), svg.px(max(width - 1.5, 0))
            )
        )
        label = f"{name} {amount / total:.0%} \u00b7 {compact(amount)} {unit}"
        column = index * 240
        shapes.append(
            Markup(
                '<rect class="bar" style="--c:var(--{})" x="{}" y="34" width="10" height="10" rx="2"/>'
            ).format(colour, column)
        )
        shapes.append(svg.text(column + 16, 43.5, label, "tick"))
        left += amount
    return svg.picture((960, 50), title, shapes)


class _Frame:
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
        self.bottom = height - (38 if axis.second_label or axis.steps else 24)
        self.x = Scale(0.0, max(axis.high, 1e-9), GUTTER, self.right)
        self.y = Scale(*y_range, self.bottom, 8)

    def grid(self, over: bool = False) -> Markup:
        """Tick labels and hairlines; `over` draws the hairlines for use on top of filled areas."""
        rows = ticks(self.y.low, self.y.high, 4 if self.bottom < 160 else 5)
        parts = []
        for value, label in zip(rows, tick_labels(rows, self.percent), strict=True):
            y = svg.px(self.y(value))
            line = '<line class="grid{}" x1="{}" x2="{}" y1="{}" y2="{}"/>'
            parts.append(Markup(line).format(" over" if over else "", GUTTER, self.right, y, y))
            parts.append(svg.text(GUTTER - 8, self.y(value) + 4, label, "tick end"))
        parts += self._step_ticks() if self.axis.steps else self._x_ticks()
        return Markup("").join(parts)

    def _step_ticks(self) -> list[Markup]:
        count = round(self.x.high)
        shown = range(0, count, max(1, -(-count // 13)))
        return [
            *(svg.text(self.x(step + 0.5), self.bottom + 16, str(step), "tick middle") for step in shown),
            svg.text(GUTTER, self.bottom + 32, "noise", "unit"),
            svg.text(self.right, self.bottom + 32, "picture", "unit end"),
            svg.text(GUTTER - 13, self.bottom + 16, self.axis.label, "unit end"),
        ]

    def _x_ticks(self) -> list[Markup]:
        columns = ticks(0.0, self.x.high, 6 if self.right - GUTTER > 220 else 3)
        many = self.x.high * self.axis.second_scale >= 20  # else ticks fall between whole iterations
        parts = [svg.text(GUTTER - 13, self.bottom + 16, self.axis.label, "unit end")]
        for value, label in zip(columns, tick_labels(columns), strict=True):
            parts.append(svg.text(self.x(value), self.bottom + 16, label, "tick middle"))
            if self.axis.second_label:
                second = f"{value * self.axis.second_scale:.{0 if many else 1}f}"
                parts.append(svg.text(self.x(value), self.bottom + 31, second, "unit middle"))
        if self.axis.second_label:
            parts.append(svg.text(GUTTER - 13, self.bottom + 31, self.axis.second_label, "unit end"))
        return parts

    def path(self, x: Sequence[float], y: Values) -> str:
        """A polyline with gaps where y is None, clamped to the frame."""
        commands, pen_up = [], True
        for a, b in zip(x, y, strict=True):
            if b is None:
                pen_up = True
                continue
            inside = min(max(b, self.y.low), self.y.high)
            commands.append(f"{'M' if pen_up else 'L'} {svg.px(self.x(a))} {svg.px(self.y(inside))}")
            pen_up = False
        return " ".join(commands)

    def line(self, line: Line) -> Markup:
        """One series: band, raw values, line, dots."""
        parts = [self._band(line)] if line.low is not None and line.high is not None else []
        if line.raw is not None:
            parts.append(Markup('<path class="raw" d="{}"/>').format(self.path(line.x, line.raw)))
        parts.append(Markup('<path class="line {}" d="{}"/>').format(line.style, self.path(line.x, line.y)))
        points = [(a, b) for a, b in zip(line.x, line.y, strict=True) if b is not None]
        if line.dots or len(points) == 1:
            dot = '<circle class="dot" cx="{}" cy="{}" r="3"><title>{} at {}</title></circle>'
            for a, b in points:
                where = f"step {int(a)}" if self.axis.steps else f"{a:,.0f} {self.axis.label}"
                parts.append(Markup(dot).format(svg.px(self.x(a)), svg.px(self.y(b)), compact(b), where))
        return Markup('<g style="--c:var(--{})">{}</g>').format(line.colour, Markup("").join(parts))

    def _band(self, line: Line) -> Markup:
        """The interval of a series, over the points that have one."""
        assert line.low is not None and line.high is not None
        rows = [
            (a, low, high)
            for a, low, high in zip(line.x, line.low, line.high, strict=True)
            if low is not None and high is not None
        ]
        if len(rows) == 1:
            a, low, high = rows[0]
            whisker = '<line class="whisker" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>'
            return Markup(whisker).format(svg.px(self.x(a)), svg.px(self.y(low)), svg.px(self.y(high)))
        upper = self.path([a for a, _, _ in rows], [high for _, _, high in rows])
        lower = self.path([a for a, _, _ in rows][::-1], [low for _, low, _ in rows][::-1])
        return Markup('<path class="band" d="{} L {} Z"/>').format(upper, lower[2:]) if rows else Markup("")

    def level(self, level: Level) -> Markup:
        """A dashed horizontal line with its interval."""
        parts = []
        if level.low is not None and level.high is not None:
            rect = '<rect class="band" x="{}" y="{}" width="{}" height="{}"/>'
            top, height = self.y(level.high), self.y(level.low) - self.y(level.high)
            parts.append(Markup(rect).format(GUTTER, svg.px(top), self.right - GUTTER, svg.px(height)))
        line = '<line class="line dashed thin" x1="{}" x2="{}" y1="{}" y2="{}"/>'
        parts.append(
            Markup(line).format(GUTTER, self.right, svg.px(self.y(level.y)), svg.px(self.y(level.y)))
        )
        return Markup('<g style="--c:var(--base)">{}</g>').format(Markup("").join(parts))

    def mark(self, x: float, text: str) -> Markup:
        """A vertical hairline with a flag, for an event."""
        at = svg.px(self.x(min(x, self.x.high)))
        flag = (
            '<g class="mark"><line x1="{0}" x2="{0}" y1="8" y2="{1}"/><path d="M {0} 8 l 7 3.5 l -7 3.5 Z"/>'
        )
        return Markup(flag + "<title>{2}</title></g>").format(at, svg.px(self.bottom), text)

    def names(self, ends: Sequence[tuple[str, float, str, float | None]]) -> Markup:
        """Series (name, y, colour, value to show or None), named right of the plot and kept apart."""
        tops = spread([self.y(y) for _, y, _, _ in ends], TEXT_GAP, 10, self.bottom)
        parts = []
        for (name, _, colour, value), top in zip(ends, tops, strict=True):
            shown = Markup("")
            if value is not None:
                number = f"{value:.0%}".replace("%", " %") if self.percent else compact(value)
                shown = Markup(' <tspan class="value">{}</tspan>').format(number)
            label = '<text class="name" style="--c:var(--{})" x="{}" y="{}">{}{}</text>'
            parts.append(Markup(label).format(colour, self.right + 7, svg.px(top + 4), name, shown))
        return Markup("").join(parts)


def _known(values: Values | None) -> list[float]:
    return [value for value in values or () if value is not None]
