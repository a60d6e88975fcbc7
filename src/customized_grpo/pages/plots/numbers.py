"""Means with intervals, and numbers as a page writes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from customized_grpo.pages.plots.scales import signed


@dataclass(frozen=True)
class Measurement:
    """A mean with its 95 % interval, as results and summaries hold it.

    `statistics.intervals.Interval` is what a bootstrap computes; here the ends may be missing.

    Attributes:
        mean: The mean.
        low: Lower end; None when no interval was computed.
        high: Upper end; None when no interval was computed.
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """Return what a difference shows: up, down, not distinguishable from 0, or no interval."""
        if self.low is None or self.high is None:
            return "no interval"
        if self.low > 0:
            return "up"
        return "down" if self.high < 0 else "not distinguishable from 0"

    @property
    def tone(self) -> str:
        """Return the colour of a difference where more is better: "better", "worse" or "unclear"."""
        return {"up": "better", "down": "worse"}.get(self.verdict, "unclear")

    @property
    def values(self) -> list[float]:
        """Return the mean and the ends that there are, for the range of an axis."""
        return [value for value in (self.mean, self.low, self.high) if value is not None]


NONE = "\u2013"
"""Stands where nothing was measured."""


def number(value: float | None, plus: bool = False) -> str:
    """Return a number with three decimals; with `plus` always with its sign, for differences."""
    if value is None:
        return NONE
    return signed(f"{value:+.3f}" if plus else f"{value:.3f}")


def interval_text(measurement: Measurement, plus: bool = False) -> str:
    """Return the 95 % interval in words; empty when there is none."""
    if measurement.low is None or measurement.high is None:
        return ""
    return f"{number(measurement.low, plus)} to {number(measurement.high, plus)}"


def p_text(p: float | None) -> str:
    """Return a p-value as people write it."""
    if p is None:
        return NONE
    # three decimals would say 0.000, which no p-value is
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def symmetric_limit(measurements: Iterable[Measurement]) -> float:
    """Return half the width of an axis around 0 that shows all of these, with some air; never 0."""
    ends: list[float] = []
    for measurement in measurements:
        ends += [abs(value) for value in measurement.values]
    # zeros alone would make an axis without width
    return max(ends, default=0.0) * 1.1 or 1.0


def difference_title(name: str, difference: Measurement) -> str:
    """Return the text that screen readers read in place of the plot of a difference."""
    size = number(difference.mean, plus=True)
    return f"{name}: difference {size}, 95 % interval {interval_text(difference, plus=True)}"
