"""Calibrated weights: those of a world in which they were worked out, and what becomes of noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from customized_grpo.statistics.calibration import calibrate, calibrated_weights, decided_shares

# Open variance of exact judges in a flow model on vectors whose scene is large and whose detail is small,
# after 0 to 10 steps; the unsmoothed formula gives .73 .83 .9 .6 .48 .1 .1 .1 .1.
PROMPT = np.array([0.074, 0.056, 0.041, 0.022, 0.007, 0, 0, 0, 0, 0, 0])
IDENTITY = np.array([0.167, 0.152, 0.145, 0.145, 0.123, 0.106, 0.053, 0.016, 0.005, 0, 0])
STEPS = range(9)


def test_weights_are_each_qualitys_share_of_what_a_step_decides() -> None:
    weights = calibrated_weights(PROMPT, IDENTITY, STEPS)
    assert weights[:9] == pytest.approx([0.73, 0.83, 0.9, 0.6, 0.48, 0.1, 0.1, 0.1, 0.1], abs=0.055)
    assert weights[9] == 0.5, "the last step decides nothing"


def test_units_of_a_score_do_not_matter_and_swapped_qualities_swap_weights() -> None:
    weights = calibrated_weights(PROMPT, IDENTITY, STEPS)
    np.testing.assert_allclose(calibrated_weights(100 * PROMPT, IDENTITY, STEPS), weights)
    np.testing.assert_allclose(calibrated_weights(IDENTITY, PROMPT, STEPS), 1 - weights)


def test_a_curve_that_rises_by_noise_decides_nothing_there() -> None:
    noisy = np.array([4.0, 2.0, 3.0, 1.0, 0.0, 0.0])
    shares = decided_shares(noisy, np.arange(4))
    # the nearest falling curve is 4, 2.5, 2.5, 1, 0; a Gaussian of .25 steps nearly leaves it as it is
    assert shares == pytest.approx([1.5 / 4, 0, 1.5 / 4, 1 / 4], abs=1e-3)


def test_smoothing_spreads_a_decision_over_five_percent_of_the_trajectory() -> None:
    curve = np.where(np.arange(101) <= 50, 1.0, 0.0)
    shares = decided_shares(curve, np.arange(100))
    assert shares.sum() == pytest.approx(1)
    spread = math.sqrt(float((shares * (np.arange(100) - 50) ** 2).sum()))
    assert spread == pytest.approx(5, rel=0.01)


def test_where_neither_is_decided_the_weight_is_a_half_and_falls_back_gently() -> None:
    prompt = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    identity = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert calibrated_weights(prompt, identity, range(5)).tolist() == pytest.approx([0.5] * 5)
    some = np.array([1.0, 0.002, 0.002, 0.0, 0.0, 0.0])
    weights = calibrated_weights(prompt, some, range(5))
    assert weights[2] == pytest.approx(0.002 / 0.006, abs=1e-3)


def test_steps_without_noise_have_weight_a_half() -> None:
    prompt = np.array([2.0, 2.0, 1.0, 0.0, 0.0])
    identity = np.array([2.0, 2.0, 2.0, 0.0, 0.0])
    assert calibrated_weights(prompt, identity, [1, 2]).tolist()[::3] == [0.5, 0.5]


def test_intervals_are_over_prompts_and_widen_with_their_spread() -> None:
    chance = np.random.default_rng(0)
    growth = chance.uniform(0.2, 1.8, (12, 1))
    steady = calibrate(growth * PROMPT, growth * IDENTITY, STEPS)
    other = chance.uniform(0, 1, (12, 1))
    mixed = calibrate(other * PROMPT + (1 - other) * IDENTITY, growth * IDENTITY, STEPS)
    assert steady is not None and mixed is not None
    assert steady.weights == pytest.approx(calibrated_weights(PROMPT, IDENTITY, STEPS).tolist())
    assert steady.low == pytest.approx(steady.weights) and steady.high == pytest.approx(steady.weights)
    assert mixed.high[0] - mixed.low[0] > 0.02
    assert all(low <= weight <= high for weight, low, high in zip(*mixed, strict=True))


def test_what_is_never_open_or_hardly_scored_is_not_calibrated() -> None:
    prompts = np.stack([PROMPT] * 3)
    assert calibrate(prompts, np.zeros_like(prompts), STEPS) is None
    holed = prompts.copy()
    holed[:2, 0] = math.nan
    assert calibrate(holed, prompts, STEPS) is None
