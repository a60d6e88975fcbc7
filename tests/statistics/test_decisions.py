"""Decision curves against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from customized_grpo.statistics.decisions import (
    along_steps,
    centre_difference,
    decision_curve,
    open_share,
    open_variance,
)
from customized_grpo.statistics.intervals import clustered_bootstrap

NAN = math.nan
STEPS = np.array([[4.0, 4.0, 1.0, 1.0, 0.0], [2.0, 2.0, 1.0, 0.0, 0.0], [6.0, 3.0, 1.0, 2.0, 0.0]])
"""V of three prompts after 0 to 4 steps."""


def test_the_variance_is_unbiased_and_of_those_that_have_a_score() -> None:
    scores = np.array([[1.0, 2.0, 4.0], [1.0, NAN, 3.0], [5.0, NAN, NAN]])
    assert open_variance(scores).tolist() == pytest.approx([7 / 3, 2.0, NAN], nan_ok=True)


def test_between_points_the_curve_is_straight_and_after_the_last_noisy_step_zero() -> None:
    measured = np.array([[8.0, 2.0]])
    (curve,) = along_steps(measured, [0, 2], range(4), 5)
    assert curve.tolist() == [8.0, 5.0, 2.0, 1.0, 0.0, 0.0]


def test_a_step_without_noise_decides_nothing() -> None:
    (curve,) = along_steps(np.array([[8.0, 2.0]]), [1, 4], [1, 2, 4], 6)
    assert curve.tolist() == [8.0, 8.0, 5.0, 2.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("points", [[1, 2], [0, 3], []])
def test_points_that_cannot_give_a_curve_are_refused(points: list[int]) -> None:
    with pytest.raises(ValueError, match="points"):
        along_steps(np.ones((1, len(points))), points, [0, 1, 2], 4)


def test_a_curve_has_the_intervals_of_the_bootstrap_over_prompts() -> None:
    curve = decision_curve(STEPS)
    assert curve is not None and curve.prompts == 3
    assert curve.open == [4.0, 3.0, 1.0, 1.0, 0.0]
    assert curve.decided == [1.0, 2.0, 0.0, 1.0]
    for step in range(5):
        interval = clustered_bootstrap(STEPS[:, step], list("abc"))
        assert (curve.low[step], curve.high[step]) == (interval.low, interval.high)
    for step in range(4):
        interval = clustered_bootstrap(STEPS[:, step] - STEPS[:, step + 1], list("abc"))
        assert (curve.decided_low[step], curve.decided_high[step]) == (interval.low, interval.high)
    assert curve.share == [1.0, 0.75, 0.25, 0.25, 0.0]
    assert curve.share_low[0] == curve.share_high[0] == 1
    assert curve.share_low[2] < 0.25 < curve.share_high[2]


def test_shares_are_those_of_the_nearest_falling_curve() -> None:
    assert open_share(np.array([4.0, 1.0, 3.0, 0.0])).tolist() == [1.0, 0.5, 0.5, 0.0]
    assert open_share(np.array([2.0, 4.0, 0.0])).tolist() == [1.0, 1.0, 0.0]


def test_a_curve_falls_although_its_estimate_rises() -> None:
    curve = decision_curve(np.array([[4.0, 1.0, 3.0, 0.0]] * 2))
    assert curve is not None
    assert curve.open == [4.0, 1.0, 3.0, 0.0] and curve.decided == [3.0, -2.0, 3.0]
    assert curve.share == [1.0, 0.5, 0.5, 0.0]


@pytest.mark.parametrize("step", [0, 2, 3])
def test_what_one_step_decides_is_centred_there(step: int) -> None:
    curve = decision_curve(np.array([[5.0] * (step + 1) + [0.0] * (4 - step)] * 3))
    assert curve is not None and curve.centre == pytest.approx(((step + 0.5) / 4,) * 3)


def test_prompts_without_a_score_are_left_out_and_one_prompt_is_not_enough() -> None:
    holed = STEPS.copy()
    holed[1, 2] = NAN
    assert decision_curve(holed) == decision_curve(STEPS[[0, 2]])
    holed[0, 0] = NAN
    assert decision_curve(holed) is None


def test_what_never_differs_has_no_share_and_no_centre() -> None:
    curve = decision_curve(np.zeros((4, 5)))
    assert curve is not None
    assert curve.centre is None and curve.share == curve.share_high == [0.0] * 5
    assert centre_difference(STEPS, np.zeros_like(STEPS)) is None


def test_a_score_that_differs_in_one_prompt_of_many_has_an_interval() -> None:
    rare = np.zeros((8, 5))
    rare[3] = [1.0, 1.0, 0.5, 0.0, 0.0]
    curve = decision_curve(rare)
    assert curve is not None and curve.centre == pytest.approx((0.5,) * 3)


def test_a_difference_of_centres_is_paired_by_prompt() -> None:
    late = STEPS[:, [0, 0, 1, 2, 4]]  # everything a step later; what steps 2 and 3 decide, in the last one
    found = centre_difference(late, STEPS)
    assert found is not None
    centres = [np.array(open_share(c.mean(0))) for c in (late, STEPS)]
    progress = np.array([0.125, 0.375, 0.625, 0.875])
    expected = (-np.diff(centres[0]) - -np.diff(centres[1])) @ progress
    assert found.mean == pytest.approx(expected) and found.low > 0
    assert centre_difference(STEPS, STEPS) == (0, 0, 0)
    mirrored = centre_difference(STEPS, late)
    assert mirrored is not None and mirrored.mean == pytest.approx(-found.mean)
