"""Hypervolume and Pareto front of points in two objectives, both maximised.

The hypervolume of a set of points is the area that they dominate above a reference point (Zitzler and Thiele,
PPSN 1998): one number for how good a whole front is, which grows with every point above the reference that no
other dominates. It depends on the reference and on the units of both objectives, so compare within one study.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def hypervolume(points: ArrayLike, reference: tuple[float, float] = (0.0, 0.0)) -> float:
    """Return the area dominated by the points and above the reference.

    Args:
        points: [N, 2]; N may be 0. Points not above the reference in both coordinates contribute nothing.
        reference: The corner from which area is counted.

    Returns:
        Area >= 0, in the product of the two units.

    Raises:
        ValueError: Another shape, NaN or infinity.
    """
    return float(hypervolumes(_points(points)[None], reference)[0])


def hypervolumes(points: ArrayLike, reference: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.float64]:
    """Return the hypervolume of each of many sets of points, such as bootstrap draws of one front.

    A sweep from right to left, O(N log N) for each set: a point adds the strip between its height and the
    greatest height so far. A dominated point adds exactly 0.

    Args:
        points: [draws, N, 2].
        reference: As `hypervolume`.

    Returns:
        [draws].

    Raises:
        ValueError: As `hypervolume`.
    """
    values = _finite(points)
    corner = _finite(reference)
    if values.ndim != 3 or values.shape[2] != 2 or corner.shape != (2,):
        raise ValueError(
            f"need points [draws, N, 2] and reference [2], got {values.shape} and {corner.shape}"
        )
    above = np.maximum(values - corner, 0.0)  # a strip without width or height has no area
    # lexsort's last key is its first: by width, and by height among equal widths, both descending
    order = np.lexsort((-above[..., 1], -above[..., 0]), axis=1)
    width, height = np.moveaxis(np.take_along_axis(above, order[..., None], axis=1), 2, 0)
    # Greatest height so far: a dominated point leaves it as it is and adds a strip of height 0.
    skyline = np.maximum.accumulate(height, axis=1)
    strips = width * np.diff(skyline, axis=1, prepend=0.0)
    # Summed one after the other: numpy's pairwise sum would round differently with each zero strip.
    total: NDArray[np.float64] = np.cumsum(np.pad(strips, ((0, 0), (1, 0))), axis=1)[:, -1]
    return total


def pareto_front(points: ArrayLike) -> list[int]:
    """Return the indices of the points that no other point dominates, by ascending first coordinate.

    A point dominates another when it is at least as good in both objectives and better in one. Of equal
    points the first is kept.

    Args:
        points: [N, 2]; N may be 0.

    Raises:
        ValueError: Another shape, NaN or infinity.
    """
    first, second = _points(points).T
    front: list[int] = []
    best = -np.inf
    # From right to left: a point is on the front when it is higher than all to its right.
    for index in np.lexsort((-second, -first)):
        if second[index] > best:
            best = second[index]
            front.append(int(index))
    return front[::-1]


def margins(points: ArrayLike, fronts: ArrayLike) -> NDArray[np.float64]:
    """Return how far each point lies outside the region that its front dominates.

    The smallest, over the points f of the front, of max(x - f_x, y - f_y): by so much the point may worsen in
    both objectives before the front dominates it. Above 0 outside; at or below 0 some point of the front is
    at least as good in both, by so much. It is the additive epsilon indicator of Zitzler et al. (IEEE
    Transactions on Evolutionary Computation 7:2, 2003) with its sign changed, and needs no reference point.

    Args:
        points: [draws, 2].
        fronts: [draws, N, 2], N >= 1; dominated points in it change nothing.

    Returns:
        [draws], in units of the objectives.

    Raises:
        ValueError: Other shapes, NaN or infinity.
    """
    one = _finite(points)
    many = _finite(fronts)
    if one.ndim != 2 or many.ndim != 3 or one.shape[1] != 2 or many.shape[::2] != one.shape or not many.size:
        raise ValueError(f"need points [draws, 2] and fronts [draws, N, 2], got {one.shape} and {many.shape}")
    # max over the two objectives [draws, N, 2] -> [draws, N]; min over the points of the front -> [draws]
    distance: NDArray[np.float64] = (one[:, None] - many).max(axis=2).min(axis=1)
    return distance


def _points(points: ArrayLike) -> NDArray[np.float64]:
    """Return finite points as [N, 2]; an empty list has no second dimension and is taken as no points."""
    values = _finite(points)
    if values.shape == (0,):
        return np.zeros((0, 2))
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"points must be [N, 2], got {values.shape}")
    return values


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("points must not be NaN or infinite")
    return array
