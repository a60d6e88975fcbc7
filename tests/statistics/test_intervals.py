"""The promises of the clustered intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from customized_grpo.statistics.intervals import Interval, clustered_bootstrap, paired_difference

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
NORMAL: Draw = lambda rng, count: rng.normal(size=count)  # noqa: E731
SKEWED: Draw = lambda rng, count: rng.exponential(size=count) - 1  # noqa: E731


def excludes(interval: Interval, value: float = 0.0) -> bool:
    """Return whether the value lies outside the interval."""
    return not interval.low <= value <= interval.high


def study(rng: np.random.Generator, clusters: int, draw: Draw = NORMAL) -> tuple[NDArray, NDArray]:
    """Rows with true mean 0: a cluster effect and twice as much noise per row; 10 to 15 rows a cluster."""
    sizes = rng.integers(10, 16, clusters)
    index = np.repeat(np.arange(clusters), sizes)
    return draw(rng, clusters)[index] + 2 * draw(rng, len(index)), index


def coverage(clusters: int, draw: Draw, repeats: int = 300) -> float:
    hits = 0
    for repeat in range(repeats):
        values, index = study(np.random.default_rng([clusters, repeat]), clusters, draw)
        hits += not excludes(clustered_bootstrap(values, index, n_boot=600, seed=repeat))
    return hits / repeats


@pytest.mark.parametrize(
    ("clusters", "draw", "least"), [(8, NORMAL, 0.92), (30, NORMAL, 0.92), (30, SKEWED, 0.90)]
)
def test_the_interval_covers_the_truth_as_often_as_it_says(clusters: int, draw: Draw, least: float) -> None:
    assert least <= coverage(clusters, draw) <= 0.985


def test_ignoring_the_clusters_would_not_cover() -> None:
    hits = 0
    for repeat in range(100):
        values, _ = study(np.random.default_rng(repeat), 30)
        hits += not excludes(clustered_bootstrap(values, np.arange(len(values)), n_boot=300))
    assert hits < 85


def test_the_interval_agrees_with_students_t_for_normal_cluster_means() -> None:
    values = np.random.default_rng(0).normal(size=12)
    interval = clustered_bootstrap(values, np.arange(12), n_boot=40_000)
    half = 2.200985 * values.std(ddof=1) / np.sqrt(12)  # t(.975, 11)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.12 * half)


def test_a_cluster_is_drawn_with_all_of_its_rows() -> None:
    values, clusters = [0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"]
    interval = clustered_bootstrap(values, clusters)
    # The only possible means: a a -> 0, a b -> 1/4, b b -> 1.
    assert (interval.mean, interval.low, interval.high) == (0.25, 0.0, 1.0)
    assert (interval.rows, interval.clusters, interval.level) == (4, 2, 0.95)


def test_large_clusters_weigh_more_as_they_do_in_the_mean() -> None:
    values = np.repeat([0.0, 1.0] * 20, [9, 1] * 20)
    interval = clustered_bootstrap(values, np.repeat(np.arange(40), [9, 1] * 20))
    assert interval.mean == 0.1
    assert interval.low < 0.1 < interval.high < 0.3


def test_same_seed_same_interval_whatever_the_order_of_the_rows() -> None:
    values, index = study(np.random.default_rng(1), 9)
    first = clustered_bootstrap(values, index, seed=3)
    order = np.random.default_rng(2).permutation(len(values))
    again = clustered_bootstrap(values[order], index[order], seed=3)
    assert (again.low, again.high) == pytest.approx((first.low, first.high))
    assert clustered_bootstrap(values, index, seed=4) != first


@settings(max_examples=30)
@given(
    shift=st.floats(-100, 100), scale=st.floats(0.1, 100), seed=st.integers(0, 9), level=st.floats(0.5, 0.99)
)
def test_the_interval_moves_and_scales_with_the_values(
    shift: float, scale: float, seed: int, level: float
) -> None:
    values, index = study(np.random.default_rng(seed), 7)
    base = clustered_bootstrap(values, index, n_boot=200, level=level)
    moved = clustered_bootstrap(shift + scale * values, index, n_boot=200, level=level)
    for name in ("mean", "low", "high"):
        assert getattr(moved, name) == pytest.approx(shift + scale * getattr(base, name), abs=1e-6)
    assert base.low <= base.mean <= base.high
    assert clustered_bootstrap(values, index, n_boot=200, level=0.995).low <= base.low


def test_pairing_removes_what_before_and_after_share() -> None:
    rng = np.random.default_rng(0)
    difficulty, index = study(rng, 20)
    before = difficulty + 0.05 * rng.normal(size=len(index))
    after = difficulty + 0.1 + 0.05 * rng.normal(size=len(index))
    difference = paired_difference(after, before, index)
    assert difference.low > 0.08 and difference.high < 0.12
    assert difference.mean == pytest.approx(after.mean() - before.mean())
    assert paired_difference(before, after, index).mean == -difference.mean


def test_nan_is_an_error_unless_omitted_and_then_it_is_counted() -> None:
    values, clusters = [1.0, np.nan, 3.0, 5.0], [0, 0, 1, 2]
    with pytest.raises(ValueError, match="1 of 4 values are NaN"):
        clustered_bootstrap(values, clusters)
    interval = clustered_bootstrap(values, clusters, nan="omit")
    assert (interval.mean, interval.rows, interval.clusters) == (3.0, 3, 3)
    pair = paired_difference([1.0, np.nan, 3.0, 5.0], [0.0, 0.0, np.nan, 0.0], clusters, nan="omit")
    assert (pair.mean, pair.rows, pair.clusters) == (3.0, 2, 2)


def test_infinities_are_an_error_even_where_they_would_cancel() -> None:
    with pytest.raises(ValueError, match="infinite"):
        clustered_bootstrap([1.0, np.inf], [0, 1], nan="omit")
    with pytest.raises(ValueError, match="infinite"):
        paired_difference([1.0, np.inf, 2.0], [0.0, np.inf, 1.0], [0, 1, 2], nan="omit")


@pytest.mark.parametrize(
    ("values", "clusters", "options", "message"),
    [
        ([1.0, 2.0], [5, 5], {}, "at least 2 clusters, got 1"),
        ([], [], {}, "at least 2 clusters, got 0"),
        ([1.0, np.nan], [0, 1], {"nan": "omit"}, "at least 2 clusters, got 1"),
        ([1.0, 2.0], [0, 1, 2], {}, "both be"),
        ([[1.0], [2.0]], [[0], [1]], {}, "both be"),
        ([1.0, 2.0], [0, 1], {"level": 95}, "level"),
        ([1.0, 2.0], [0, 1], {"n_boot": 0}, "n_boot"),
    ],
)
def test_what_has_no_interval_is_an_error(values, clusters, options, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        clustered_bootstrap(values, clusters, **options)
    if len(values) != len(clusters):
        with pytest.raises(ValueError, match="shape"):
            paired_difference(values, [*values, 0.0], clusters)
