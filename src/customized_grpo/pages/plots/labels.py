"""Places of labels beside the points of a crowded plot, so that none covers another or a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LINE = 14
"""Height of a label in pixels."""
CHARACTER = 8.3
"""Width of a character of a label, as in a wide bold font of 12 units."""
MARKER = 6
"""Half the side of the square that a point keeps free."""

COVERING = 1000.0
"""What it costs to cover a point or a label at all, in pixels of distance; more than any distance."""

# Tried in this order, near to far and to the right first: the first free place wins.
DISTANCES = (8, 11, 15, 20, 27, 36, 48, 64, 84, 110, 145)
DIRECTIONS = tuple(index * math.pi / 8 for index in (0, 8, 1, 15, 7, 9, 4, 12, 2, 14, 6, 10, 3, 13, 5, 11))


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; y runs downwards.

    Attributes:
        left: Smallest x.
        top: Smallest y.
        right: Largest x.
        bottom: Largest y.
    """

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Return the common area in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * height if width > 0 and height > 0 else 0.0

    def grown(self, by: float) -> Box:
        """Return the box with so many pixels more on each side."""
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """Return the point of the box that is nearest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)


def place_labels(
    points: Sequence[tuple[float, float]], labels: Sequence[str], frame: Box, avoid: Sequence[Box] = ()
) -> list[Box]:
    """Choose a box for every label, one after the other: the nearest that is free.

    Args:
        points: Where the labelled points are, in pixels. No label covers any of them.
        labels: The text of each; an empty one takes no room.
        frame: All boxes lie within it, unless a label is wider than it.
        avoid: What may be covered, but only rather than moving a label far away, such as whiskers.

    Returns:
        As many boxes as points, in the same order. They overlap only where the frame is full.
    """
    taken = [Box(x, y, x, y).grown(MARKER) for x, y in points]
    placed: list[Box] = []
    for (x, y), words in zip(points, labels, strict=True):
        if not words:
            placed.append(Box(x, y, x, y))
            continue
        box = _best(x, y, len(words) * CHARACTER, frame, taken, avoid)
        placed.append(box)
        taken.append(box)
    return placed


def _best(x: float, y: float, width: float, frame: Box, taken: Sequence[Box], avoid: Sequence[Box]) -> Box:
    """Return the cheapest candidate: covering what is taken costs most, then distance, then what to avoid."""
    best = Box(x, y, x + width, y + LINE)
    least = math.inf
    for distance in DISTANCES:
        # all further places cost more than the best one so far
        if least <= distance:
            break
        for angle in DIRECTIONS:
            box = _candidate(x, y, width, distance, angle, frame)
            covered = sum(map(box.overlap, taken))
            cost = distance + (COVERING + covered if covered else 0.0)
            if cost < least:  # overlaps with what to avoid are only counted where they can matter
                # per square pixel: little, so that a whisker is covered rather than a name moved far away
                cost += 0.12 * sum(map(box.overlap, avoid))
            if cost < least:
                best, least = box, cost
    return best


def _candidate(x: float, y: float, width: float, distance: float, angle: float, frame: Box) -> Box:
    """Return a box whose edge is `distance` from the point in a direction, moved into the frame."""
    middle = x + math.cos(angle) * (distance + width / 2)
    # y runs downwards, angles upwards
    centre = y - math.sin(angle) * (distance + LINE / 2)
    left = max(min(middle - width / 2, frame.right - width), frame.left)
    top = max(min(centre - LINE / 2, frame.bottom - LINE), frame.top)
    return Box(left, top, left + width, top + LINE)
