"""Plots for one cell of a table, as inline SVG: an interval around 0, and shares of a whole."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from customized_grpo.pages.plots import svg
from customized_grpo.pages.plots.numbers import Measurement
from customized_grpo.pages.plots.scales import Scale


def interval_plot(
    measurement: Measurement, limit: float, *, tone: str, title: str, start: float | None = None
) -> Markup:
    """Return a point with its interval, zero marked.

    Args:
        measurement: The mean, and its interval if there is one.
        limit: Right end of the axis, > 0; the same in all rows that are to be compared.
        tone: Name of a colour variable.
        title: Read out by screen readers.
        start: Left end of the axis, <= 0; -limit by default.
    """
    scale = Scale(-limit if start is None else start, limit, 4, 156)
    zero = Markup('<line class="zero" x1="{0}" x2="{0}" y1="1" y2="21"/>')
    parts = [zero.format(svg.px(scale(0.0)))]
    if measurement.low is not None and measurement.high is not None:
        # a wide interval may leave the axis, but not the cell
        left = scale(max(measurement.low, scale.low))
        right = scale(min(measurement.high, limit))
        whisker = Markup('<line class="whisker" x1="{}" x2="{}" y1="11" y2="11"/>')
        parts.append(whisker.format(svg.px(left), svg.px(right)))
    point = Markup('<circle class="point" cx="{}" cy="11" r="4"/>')
    parts.append(point.format(svg.px(scale(measurement.mean))))
    group = Markup('<g style="--c:var(--{})">{}</g>').format(tone, Markup("").join(parts))
    return svg.chart((160, 22), title, [group], css="chart cell")


def share_bar(parts: Sequence[tuple[str, str, float]], tick: float | None, *, title: str) -> Markup:
    """Return one bar divided among (name, colour, share), with a tick to compare the first share with.

    Args:
        parts: Shares in [0, 1] that add up to at most 1, from the left.
        tick: The share at which the tick stands, or None for none.
        title: Read out by screen readers.
    """
    scale = Scale(0.0, 1.0, 1, 239)
    shapes: list[Markup] = []
    left = 0.0
    for name, colour, share in parts:
        bar = '<rect class="bar" style="--c:var(--{})" x="{}" y="3" width="{}" height="10">'
        # one unit less, so that a gap parts the neighbours
        width = max(scale(left + share) - scale(left) - 1, 0)
        shapes.append(Markup(bar).format(colour, svg.px(scale(left)), svg.px(width)))
        shapes.append(Markup("<title>{} {}</title></rect>").format(name, f"{share:.1%}"))
        left += share
    if tick is not None:
        line = '<line class="null" x1="{0}" x2="{0}" y1="0" y2="16"><title>null {1}</title></line>'
        shapes.append(Markup(line).format(svg.px(scale(tick)), f"{tick:.1%}"))
    return svg.chart((240, 16), title, shapes, css="chart share")
