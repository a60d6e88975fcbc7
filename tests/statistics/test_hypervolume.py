"""The promises of the hypervolume and the Pareto front."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from customized_grpo.statistics.hypervolume import hypervolume, hypervolumes, margins, pareto_front

# Few values, so that ties and duplicates are common; sixteenths, so that areas are exact in floating point.
coordinate = st.integers(-4, 12).map(lambda value: value / 16)
point = st.tuples(coordinate, coordinate)
point_sets = st.lists(point, max_size=12)


def area_by_cells(points: NDArray, reference: tuple[float, float]) -> float:
    """Sum the cells of the grid through all coordinates whose upper right corner some point dominates."""
    xs, ys = (np.unique(np.append(points[:, i], reference[i])) for i in (0, 1))
    total = 0.0
    for left, right in zip(xs, xs[1:], strict=False):
        for low, high in zip(ys, ys[1:], strict=False):
            if left >= reference[0] and low >= reference[1] and ((points >= (right, high)).all(1)).any():
                total += (right - left) * (high - low)
    return total


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] >= b[0] and a[1] >= b[1] and a != b


@pytest.mark.parametrize("seed", range(20))
def test_the_area_is_that_of_the_dominated_cells(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(rng.integers(1, 15), 2))
    points = np.concatenate([points, points[: len(points) // 3]])
    reference = (-0.3, 0.1)
    assert hypervolume(points, reference) == pytest.approx(area_by_cells(points, reference), abs=1e-12)


@given(points=point_sets)
def test_the_area_is_exact_with_ties_and_duplicates(points: list[tuple[float, float]]) -> None:
    table = np.array(points).reshape(-1, 2)
    assert hypervolume(points) == area_by_cells(table, (0.0, 0.0))
    assert hypervolume(points, (-0.125, 0.25)) == area_by_cells(table, (-0.125, 0.25))


def test_known_areas() -> None:
    assert hypervolume([(2.0, 3.0)]) == 6.0
    assert hypervolume([(2.0, 3.0)], (1.0, 1.0)) == 2.0
    assert hypervolume([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]) == 6.0
    assert hypervolume([]) == 0.0
    assert hypervolume([(5.0, 0.0), (-1.0, 4.0), (0.0, 0.0)]) == 0.0


@given(points=point_sets, new=point)
def test_a_point_adds_area_exactly_when_it_margins(
    points: list[tuple[float, float]], new: tuple[float, float]
) -> None:
    before, after = hypervolume(points), hypervolume([*points, new])
    outside = not points or margins([new], [points])[0] > 0
    assert outside == (not any(p[0] >= new[0] and p[1] >= new[1] for p in points))
    if min(new) > 0:
        assert (after > before) == outside
    else:
        assert after == before
    assert after >= before


def test_a_dominated_point_adds_exactly_nothing_whatever_the_rounding() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = rng.random((40, 2))
        worse = points[rng.integers(40, size=20)] * rng.random((20, 2))
        worse = np.concatenate([worse, points[:20] * (1.0, 0.7), points[20:] * (0.7, 1.0)])
        assert hypervolume(np.concatenate([worse, points])) == hypervolume(points)
        assert hypervolume(points[pareto_front(points)]) == hypervolume(points)


@given(points=st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), max_size=10), seed=st.integers(0, 99))
def test_order_does_not_matter(points: list[tuple[float, float]], seed: int) -> None:
    table = np.array(points).reshape(-1, 2)
    assert hypervolume(np.random.default_rng(seed).permutation(table)) == hypervolume(table)


@given(points=point_sets, by=st.tuples(st.sampled_from([0.25, 1.0, 8.0]), st.sampled_from([0.5, 2.0])))
def test_the_area_scales_with_both_units(points: list[tuple[float, float]], by: tuple[float, float]) -> None:
    scaled = np.array(points).reshape(-1, 2) * by
    assert hypervolume(scaled) == by[0] * by[1] * hypervolume(points)
    assert hypervolume(np.array(points).reshape(-1, 2) + 3, (3.0, 3.0)) == hypervolume(points)


def test_a_batch_equals_one_by_one() -> None:
    draws = np.random.default_rng(1).normal(0.3, 1, (200, 9, 2))
    single = [hypervolume(points, (0.1, -0.2)) for points in draws]
    np.testing.assert_array_equal(hypervolumes(draws, (0.1, -0.2)), single)
    np.testing.assert_array_equal(hypervolumes(np.zeros((3, 0, 2))), np.zeros(3))


@given(points=point_sets)
def test_the_front_is_what_nobody_dominates(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    best = [p for p in points if not any(dominates(q, p) for q in points)]
    assert [points[index] for index in front] == sorted(set(best))
    assert [points.index(points[index]) for index in front] == front  # of equal points the first
    assert not any(dominates(points[i], points[j]) for i in front for j in front)


def test_the_front_is_sorted_by_the_first_coordinate() -> None:
    assert pareto_front([(3.0, 1.0), (1.0, 3.0), (1.0, 3.0), (2.0, 0.5), (2.0, 2.0), (1.0, 2.0)]) == [1, 4, 0]
    assert pareto_front([(-2.0, -1.0)]) == [0]
    assert pareto_front([]) == []


def test_margins_are_judged_draw_by_draw_and_equality_is_inside() -> None:
    front = [[(1.0, 3.0), (3.0, 1.0)]] * 5 + [[(0.0, 9.0), (9.0, 0.0)]]
    points = [(1.0, 3.0), (2.0, 2.0), (3.0, 0.5), (3.5, 0.0), (0.5, 0.25), (1.0, 1.0)]
    np.testing.assert_allclose(margins(points, front), [0.0, 1.0, 0.0, 0.5, -0.75, 1.0])


@given(points=st.lists(point, min_size=1, max_size=8), new=point)
def test_the_margin_is_what_a_point_may_lose_before_the_front_dominates_it(
    points: list[tuple[float, float]], new: tuple[float, float]
) -> None:
    margin = float(margins([new], [points])[0])
    for loss, inside in ((margin, True), (margin - 1 / 32, False)):
        worse = (new[0] - loss, new[1] - loss)
        assert any(p[0] >= worse[0] and p[1] >= worse[1] for p in points) == inside


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_an_error(bad: float) -> None:
    spoiled = [(1.0, 1.0), (bad, 1.0)]
    calls = [
        lambda: hypervolume(spoiled),
        lambda: hypervolume([(1.0, 1.0)], (0.0, bad)),
        lambda: hypervolumes([spoiled]),
        lambda: pareto_front(spoiled),
        lambda: margins(spoiled, np.ones((2, 3, 2))),
        lambda: margins([(1.0, 1.0)], [spoiled]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="NaN or infinite"):
            call()


def test_other_shapes_are_an_error() -> None:
    calls = [
        lambda: hypervolume(np.ones((2, 3))),
        lambda: hypervolume(np.ones(2)),
        lambda: hypervolume(np.ones((2, 2)), (0.0, 0.0, 0.0)),  # type: ignore[arg-type]
        lambda: hypervolumes(np.ones((2, 2))),
        lambda: hypervolumes(np.ones((2, 2, 3))),
        lambda: pareto_front(np.ones((1, 2, 2))),
        lambda: margins(np.ones((3, 2)), np.ones((2, 4, 2))),
        lambda: margins(np.ones((2, 3)), np.ones((2, 4, 3))),
        lambda: margins(np.ones(2), np.ones((2, 4, 2))),
        lambda: margins(np.ones((2, 2)), np.ones((2, 0, 2))),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"\[N, 2\]|\[draws"):
            call()
