"""Axes of the charts: where ticks go, how numbers read, and how labels keep clear of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MINUS = "\u2212"


@dataclass(frozen=True)
class Scale:
    """A linear map from data to pixels.

    Attributes:
        low: Smallest value.
        high: Largest value.
        start: Pixel of the smallest value.
        end: Pixel of the largest value; less than `start` where pixels run downwards.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def domain(values: Sequence[float], pad: float = 0.06, least: float = 0.0) -> tuple[float, float]:
    """Return the range that an axis must span to show all values, with some air and never of zero width.

    Args:
        values: At least one finite number.
        pad: Air on each side, as a share of the range. A side at 0 with no negative values gets none.
        least: Smallest width; a narrower range is widened evenly.
    """
    low = min(values)
    high = max(values)
    air = (high - low) * pad
    # wide enough around the middle: a flat curve in a narrow range would look like a change
    if high - low + 2 * air < least:
        air = (least - (high - low)) / 2
    if high - low + 2 * air <= abs(high) * 1e-9:  # constant: any range will do, as long as there is one
        air = abs(high) * 0.1 or 0.5
    # an axis that nearly reaches 0 starts there, so that heights can be compared
    return (0.0 if 0 <= low <= 3 * air else low - air), high + air


def ticks(low: float, high: float, count: int = 5, least: float = 0.0) -> list[float]:
    """Return about `count` round numbers (1, 2 or 5 times a power of ten apart) within [low, high].

    Args:
        low: Smallest value of the axis.
        high: Largest value of the axis.
        count: About how many.
        least: Smallest distance of two of them, a round number itself; 1 for what is counted.

    Raises:
        ValueError: The range is empty or not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"an axis needs low < high, got {low} and {high}")
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    steps = (power, power * 2, power * 5, power * 10)
    # 1e-9 on each side: a tick that rounding puts just outside the range still belongs to it.
    step = next(step for step in steps if step >= rough * (1 - 1e-9))
    step = max(step, least)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_labels(values: Sequence[float], percent: bool = False) -> list[str]:
    """Return labels with as many decimals as the step between the ticks needs, the same for all."""
    if percent:
        labels = tick_labels([value * 100 for value in values])
        return [f"{label} %" for label in labels]
    largest = max((abs(value) for value in values), default=0.0)
    step = min((b - a for a, b in zip(values, values[1:], strict=False)), default=largest or 1.0)
    # with decimals alone, labels would be little but zeros
    if 0 < largest < 1e-3:
        return ["0" if value == 0 else compact(value) for value in values]
    # longer numbers do not fit between the axis and the edge
    if largest >= 10_000:
        decimals = _decimals(step / 1000)
        return ["0" if value == 0 else signed(f"{value / 1000:.{decimals}f}k") for value in values]
    return [signed(f"{value:.{_decimals(step)}f}") for value in values]


def _decimals(step: float) -> int:
    # 1e-9: the logarithm of 0.1 or 0.001 may come out a little below the whole number
    return max(0, -math.floor(math.log10(step) + 1e-9))


def compact(value: float) -> str:
    """Return a number in about three significant digits, in scientific notation where that is shorter."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return signed(f"{mantissa.removesuffix('.0')}e{int(exponent)}")
    if size >= 1000:
        return signed(f"{value:,.0f}")
    if size >= 100:
        return signed(f"{value:.0f}")
    return signed(f"{value:.1f}" if size >= 10 else f"{value:.3f}")


def signed(text: str) -> str:
    """Return the same text with a typographic minus."""
    return text.replace("-", MINUS) if text.startswith("-") else text.replace("e-", f"e{MINUS}")


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move label positions apart until neighbours are `gap` apart, within [low, high], keeping their order.

    Too many labels for the room are squeezed evenly.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    gap = min(gap, (high - low) / max(len(positions) - 1, 1))
    placed: list[float] = []
    for index in order:
        floor = placed[-1] + gap if placed else low
        placed.append(max(positions[index], floor))
    # back from the last: labels that were pushed beyond the end push their neighbours up
    ceiling = high
    for rank in range(len(placed) - 1, -1, -1):
        placed[rank] = min(placed[rank], ceiling)
        ceiling = placed[rank] - gap
    result = [0.0] * len(positions)
    # from ranks, which ascend with the position, back to the caller's order
    for rank, index in enumerate(order):
        result[index] = placed[rank]
    return result
