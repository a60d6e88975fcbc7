"""The promises of intervals over crossed seeds and subjects."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from customized_grpo.statistics.crossed import (
    CrossedInterval,
    crossed_interval,
    crossed_weights,
    draw_means,
    holm,
)

Shares = tuple[float, float, float]


def excludes(interval: CrossedInterval, value: float = 0.0) -> bool:
    """Return whether the value lies outside the interval."""
    return not interval.low <= value <= interval.high


def tables(count: int, seeds: int, subjects: int, shares: Shares, seed: int = 0) -> NDArray:
    """Tables [count, S, C] of true mean 0; shares of seeds, subjects and residual in the mean's variance."""
    rng = np.random.default_rng([seed, seeds, subjects])
    by_seed, by_subject, residual = shares
    return (
        np.sqrt(by_seed * seeds) * rng.normal(size=(count, seeds, 1))
        + np.sqrt(by_subject * subjects) * rng.normal(size=(count, 1, subjects))
        + np.sqrt(residual * seeds * subjects) * rng.normal(size=(count, seeds, subjects))
    )


def coverage(many: NDArray) -> float:
    return 1 - float(np.mean([excludes(crossed_interval(table)) for table in many]))


def same(interval: CrossedInterval, low: float, high: float, p: float) -> None:
    assert (interval.low, interval.high, interval.p) == pytest.approx((low, high, p), rel=1e-9)


@pytest.mark.parametrize(
    ("seeds", "subjects", "shares", "most"),
    [
        (3, 12, (1, 0, 0), 0.97),
        (3, 48, (8, 0, 1), 0.97),
        (3, 12, (5, 1, 0), 0.98),
        (3, 12, (0, 0, 1), 1.00),
        (5, 12, (1, 0, 0), 0.97),
        (5, 12, (0, 1, 0), 0.97),
        (5, 12, (1, 1, 0), 0.985),
        (5, 12, (1, 1, 1), 0.985),
        (5, 12, (0, 0, 1), 0.99),
        (8, 12, (1, 4, 1), 0.98),
    ],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(
    seeds: int, subjects: int, shares: Shares, most: float
) -> None:
    assert 0.92 <= coverage(tables(1000, seeds, subjects, shares)) <= most


def test_ignoring_the_seeds_would_not_cover() -> None:
    many = tables(400, 5, 12, (3, 1, 0.5))
    assert coverage(many) >= 0.93
    assert coverage(many.mean(axis=1, keepdims=True)) < 0.80  # subjects only
    assert np.mean(stats.ttest_1samp(many.reshape(400, -1), 0, axis=1).pvalue >= 0.05) < 0.75  # cells


def test_missing_cells_do_not_spoil_the_coverage() -> None:
    many = tables(1000, 5, 12, (1, 1, 1), seed=1)
    many[np.random.default_rng(0).random(many.shape) < 0.15] = np.nan
    assert 0.93 <= coverage(many) <= 0.985


def test_where_only_seeds_vary_it_is_students_t_over_seeds() -> None:
    means = np.random.default_rng(0).normal(0.4, 1, 5)
    expected = stats.ttest_1samp(means, 0)
    interval = crossed_interval(np.repeat(means[:, None], 12, axis=1))
    same(interval, *expected.confidence_interval(0.95), expected.pvalue)
    assert interval.mean == pytest.approx(means.mean())
    assert (interval.seeds, interval.subjects) == (5, 12)


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_where_only_subjects_vary_it_is_students_t_over_subjects(seeds: int) -> None:
    means = np.random.default_rng(1).normal(0.4, 1, 12)
    expected = stats.ttest_1samp(means, 0)
    interval = crossed_interval(np.repeat(means[None], seeds, axis=0), level=0.9)
    same(interval, *expected.confidence_interval(0.9), expected.pvalue)
    assert (interval.seeds, interval.subjects) == (seeds, 12)


def test_a_full_table_gives_the_mean_squares_of_the_two_way_analysis_of_variance() -> None:
    values = 0.5 + tables(1, 4, 7, (2, 2, 0.2), seed=1)[0]
    rows, columns = values.mean(1), values.mean(0)
    residual = values - rows[:, None] - columns + values.mean()
    squares = [7 * rows.var(ddof=1), 4 * columns.var(ddof=1), (residual**2).sum() / (3 * 6)]
    by_seed, by_subject, by_cell = (square / 28 for square in squares)
    assert by_cell < min(by_seed, by_subject)
    error = np.sqrt(by_seed + by_subject - by_cell)
    df = (by_seed + by_subject) / (by_seed / 3 + by_subject / 6)
    half = stats.t.ppf(0.975, df) * error
    p = 2 * stats.t.sf(abs(values.mean()) / error, df)
    same(crossed_interval(values), values.mean() - half, values.mean() + half, p)


def test_the_variance_never_falls_below_what_one_factor_shows() -> None:
    values = np.array([[1.0, -1, 1, 2], [-1.0, 1, 1, 2], [0.2, 0.2, 0.7, 2]])
    rows, columns = values.mean(1), values.mean(0)
    by_seed, by_subject = rows.var(ddof=1) / 3, columns.var(ddof=1) / 4
    assert np.square(values - rows[:, None] - columns + values.mean()).sum() / 6 / 12 > by_seed
    df = (by_seed + by_subject) / (by_seed / 2 + by_subject / 3)
    half = stats.t.ppf(0.975, df) * np.sqrt(by_subject)
    assert crossed_interval(values).high - values.mean() == pytest.approx(half)


def additive_residual(values: NDArray) -> NDArray:
    """Take row and column means of the measured cells off in turn until nothing is left to take."""
    for _ in range(2000):
        values = values - np.nanmean(values, axis=1, keepdims=True)
        values = values - np.nanmean(values, axis=0, keepdims=True)
    return values


def test_a_table_with_gaps_counts_measured_cells_only() -> None:
    values = tables(1, 4, 6, (1, 1, 0.3))[0] + 1
    values[[0, 2, 2, 3], [1, 1, 4, 5]] = np.nan
    mean = np.nanmean(values)
    by_seed = 4 / 3 * sum(np.nansum(row - mean) ** 2 for row in values) / 20**2
    by_subject = 6 / 5 * sum(np.nansum(column - mean) ** 2 for column in values.T) / 20**2
    by_cell = np.nansum(additive_residual(values) ** 2) / (20 - 4 - 6 + 1) / 20
    assert by_cell < min(by_seed, by_subject)
    df = (by_seed + by_subject) / (by_seed / 3 + by_subject / 5)
    half = stats.t.ppf(0.975, df) * np.sqrt(by_seed + by_subject - by_cell)
    interval = crossed_interval(values)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((mean, mean - half, mean + half))


def test_a_run_or_subject_without_any_value_is_as_if_it_were_not_there() -> None:
    values = tables(1, 4, 6, (1, 1, 1))[0]
    gaps = np.full((5, 8), np.nan)
    gaps[np.ix_([0, 1, 3, 4], [0, 2, 3, 4, 5, 7])] = values
    assert crossed_interval(gaps) == crossed_interval(values)
    one = np.full((3, 6), np.nan)
    one[1] = values[0]
    assert crossed_interval(one) == crossed_interval(values[:1])
    assert crossed_interval(one).seeds == 1


def test_with_as_many_effects_as_cells_no_residual_is_taken_off() -> None:
    interval = crossed_interval([[1.0, np.nan], [np.nan, 3.0]])
    half = stats.t.ppf(0.975, 1) * np.sqrt(2)  # each factor has variance 1, df 1
    assert (interval.mean, interval.high) == pytest.approx((2.0, 2 + half))


def test_pairing_removes_what_both_arms_share() -> None:
    rng = np.random.default_rng(0)
    shared = tables(1, 5, 12, (1, 3, 1))[0]
    before = shared + 0.05 * rng.normal(size=(5, 12))
    after = shared + 0.1 + 0.05 * rng.normal(size=(5, 12))
    paired = crossed_interval(after - before)
    alone = [crossed_interval(table) for table in (before, after)]
    assert paired.low > 0.05 and paired.high < 0.15
    assert all(interval.high - interval.low > 20 * (paired.high - paired.low) for interval in alone)
    assert paired.mean == pytest.approx(alone[1].mean - alone[0].mean)
    base = shared.mean(axis=0)  # one model that all runs started from: [C]
    assert crossed_interval(after - base).mean == pytest.approx(after.mean() - base.mean())


@settings(max_examples=200)
@given(seed=st.integers(0, 10_000), shift=st.floats(-3, 3), shape=st.sampled_from([(1, 9), (3, 5), (5, 12)]))
def test_p_is_below_alpha_exactly_when_the_interval_excludes_zero(
    seed: int, shift: float, shape: tuple[int, int]
) -> None:
    values = tables(1, *shape, (0.5, 0.5, 0.3), seed)[0] + shift
    for level in (0.95, 0.8):
        interval = crossed_interval(values, level)
        assert (interval.p < 1 - level) == excludes(interval)
        assert interval.low <= interval.mean <= interval.high
    at_p = crossed_interval(values, 1 - crossed_interval(values).p)
    assert min(abs(at_p.low), abs(at_p.high)) == pytest.approx(0, abs=1e-6)


@settings(max_examples=50)
@given(seed=st.integers(0, 99), shift=st.floats(-10, 10), scale=st.floats(0.1, 10))
def test_the_interval_moves_and_scales_with_the_values_in_any_order(
    seed: int, shift: float, scale: float
) -> None:
    values = tables(1, 4, 6, (1, 1, 1), seed)[0]
    values[1, 2] = np.nan
    rng = np.random.default_rng(seed)
    moved = crossed_interval(shift + scale * values[rng.permutation(4)][:, rng.permutation(6)])
    base = crossed_interval(values)
    for name in ("mean", "low", "high"):
        assert getattr(moved, name) == pytest.approx(shift + scale * getattr(base, name), abs=1e-8)
    assert crossed_interval(-values).p == pytest.approx(base.p)


def test_without_any_variation_the_interval_is_a_point() -> None:
    zero, constant = crossed_interval(np.zeros((3, 4))), crossed_interval(np.full((3, 4), 0.25))
    assert (zero.low, zero.high, zero.p) == (0.0, 0.0, 1.0) and not excludes(zero)
    assert (constant.low, constant.high, constant.p) == (0.25, 0.25, 0.0) and excludes(constant)


def test_json_holds_plain_finite_numbers() -> None:
    interval = crossed_interval([[1.0, 2.0, np.nan], [2.0, 2.5, 4.0]])
    assert json.loads(json.dumps(interval.to_json(), allow_nan=False)) == {
        name: getattr(interval, name) for name in ("mean", "low", "high", "p")
    }
    assert excludes(interval, interval.high + 1e-9) and not excludes(interval, interval.high)


@pytest.mark.parametrize(
    ("table", "level", "message"),
    [
        ([1.0, 2.0], 0.95, r"\[S, C\]"),
        ([[[1.0], [2.0]]], 0.95, r"\[S, C\]"),
        ([[1.0, np.inf]], 0.95, "infinite"),
        ([[1.0], [2.0]], 0.95, "at least 2 measured subjects, got 1"),
        ([[1.0, np.nan], [2.0, np.nan]], 0.95, "at least 2 measured subjects, got 1"),
        ([[np.nan, np.nan]], 0.95, "at least 2 measured subjects, got 0"),
        (np.zeros((0, 4)), 0.95, "at least 2 measured subjects, got 0"),
        ([[1.0, 2.0]], 95, "level"),
    ],
)
def test_what_has_no_interval_is_an_error(table: object, level: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crossed_interval(table, level)  # type: ignore[arg-type]


def test_uniform_weights_give_the_plain_mean_of_the_measured_cells() -> None:
    arms = tables(3, 4, 6, (1, 1, 1))
    arms[1, [0, 3], [2, 5]] = np.nan
    means = draw_means(arms, (np.full((2, 4), 1 / 4), np.full((2, 6), 1 / 6)))
    np.testing.assert_allclose(means, [np.nanmean(arms, axis=(1, 2))] * 2)


def test_a_draw_is_the_mean_of_the_drawn_rows_and_columns() -> None:
    arms = tables(2, 3, 5, (1, 1, 1))
    arms[0, 1, 1] = np.nan
    weights = crossed_weights(3, 5, 40, seed=2)
    means = draw_means(arms, weights)
    for draw, (rows, columns) in enumerate(zip(*weights, strict=True)):
        chosen_rows = np.repeat(np.arange(3), np.rint(rows * 3).astype(int))
        chosen_columns = np.repeat(np.arange(5), np.rint(columns * 5).astype(int))
        assert (len(chosen_rows), len(chosen_columns)) == (3, 5)
        resampled = arms[:, chosen_rows][:, :, chosen_columns].reshape(2, -1)
        np.testing.assert_allclose(means[draw], np.nanmean(resampled, axis=1))


def test_all_arms_meet_the_same_draws() -> None:
    arm = tables(1, 5, 12, (1, 1, 1))[0]
    means = draw_means([arm, arm + 0.25], crossed_weights(5, 12, 300, seed=0))
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 0.25)
    assert means.std(axis=0).min() > 0.5


def test_the_spread_of_the_draws_is_that_of_both_factors() -> None:
    seed_effect, subject_effect = np.array([0.0, 1, 4]), np.array([3.0, 0, 0, 1, 1, 7])
    table = seed_effect[:, None] + subject_effect
    means = draw_means(table[None], crossed_weights(3, 6, 40_000, seed=0))
    assert means.var() == pytest.approx(seed_effect.var() / 3 + subject_effect.var() / 6, rel=0.03)


def test_one_seed_always_has_weight_one() -> None:
    seeds, subjects = crossed_weights(1, 4, 50, seed=0)
    np.testing.assert_array_equal(seeds, np.ones((50, 1)))
    np.testing.assert_allclose(subjects.sum(axis=1), 1)


def test_same_seed_same_draws() -> None:
    first, again, other = (crossed_weights(5, 12, 20, seed=seed) for seed in (3, 3, 4))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_a_draw_of_nothing_measured_is_nan_for_that_arm_only() -> None:
    arms = np.array([[[np.nan, np.nan], [1.0, 3.0]], [[5.0, 6.0], [7.0, 8.0]]])
    means = draw_means(arms, ([[1.0, 0.0], [0.5, 0.5]], [[0.5, 0.5], [1.0, 0.0]]))
    np.testing.assert_allclose(means, [[np.nan, 5.5], [1.0, 6.0]])


def test_weights_and_tables_must_fit() -> None:
    weights = crossed_weights(3, 4, 10, seed=0)
    misfits = [
        (np.ones((3, 4)), weights),
        (np.ones((2, 4, 3)), weights),
        (np.ones((2, 3, 4)), (weights[0], weights[1][:9])),
        (np.ones((2, 3, 4)), (weights[0][0], weights[1][0])),
    ]
    for arms, pair in misfits:
        with pytest.raises(ValueError, match="do not fit"):
            draw_means(arms, pair)
    with pytest.raises(ValueError, match="infinite"):
        draw_means(np.full((2, 3, 4), np.inf), weights)
    for counts in [(0, 4, 10), (3, 0, 10), (3, 4, 0)]:
        with pytest.raises(ValueError, match="at least 1"):
            crossed_weights(*counts, seed=0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    assert holm([0.0, 1.0]) == [0.0, 1.0]


@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(p_values: list[float]) -> None:
    # A hypothesis falls when Bonferroni rejects every set of hypotheses that it belongs to.
    everyone = range(len(p_values))
    sets = [chosen for size in everyone for chosen in combinations(everyone, size + 1)]
    for index, adjusted in enumerate(holm(p_values)):
        bound = max(len(chosen) * min(p_values[i] for i in chosen) for chosen in sets if index in chosen)
        assert adjusted == pytest.approx(min(1.0, bound))


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_holm_refuses_what_is_no_p_value(bad: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([0.5, bad])
