"""Numbers and intervals as a page writes them."""

from __future__ import annotations

from dataclasses import dataclass

from customized_grpo.pages.plots.scales import signed


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; the ends are None when none was computed."""

    mean: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """What may be said of a difference: up, down, not distinguishable from 0, or no interval."""
        if self.low is None or self.high is None:
            return "no interval"
        if self.low > 0:
            return "up"
        return "down" if self.high < 0 else "not distinguishable from 0"


NONE = "\u2013"
"""Stands where nothing was measured."""


def number(value: float | None, plus: bool = False) -> str:
    """Three decimals; a difference always shows its sign."""
    if value is None:
        return NONE
    return signed(f"{value:+.3f}" if plus else f"{value:.3f}")


def interval_text(interval: Interval, plus: bool = False) -> str:
    """The 95 % interval in words, empty when there is none."""
    if interval.low is None or interval.high is None:
        return ""
    return f"{number(interval.low, plus)} to {number(interval.high, plus)}"
