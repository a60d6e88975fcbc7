"""Decision curves: how much of a score's variance is still open after each denoising step.

From the state after i of T steps K continuations are drawn. The variance of a score among them, averaged over
prompts, is V(i): what the steps i to T - 1 still decide. V = 0 after the last step that draws noise, and
d(i) = V(i) - V(i + 1) is what step i decides. A score that is read off a half-finished image would be
confused by its blur; here all images are finished.

V(i) is measured at some of the noisy steps and linear between them, counted in noisy steps. A step without
noise decides nothing: V(i + 1) = V(i) there. By the law of total variance V may only fall. The estimate is
unbiased and so may rise a little; shares of what is open, and what is computed from them, are those of the
nearest curve that falls (isotonic regression).

Legend: P prompts, K continuations, I measured points, T steps, B bootstrap draws over prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from customized_grpo.statistics.intervals import bootstrap_means, expanded_quantiles

Floats = NDArray[np.float64]
N_BOOT = 2000
LEVEL = 0.95
MIN_PROMPTS = 2
"""Fewest prompts that an interval can be given for."""


class Bounds(NamedTuple):
    """An estimate and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class DecisionCurve:
    """When one score is decided.

    Attributes:
        open: V after 0 to T steps [T + 1], in squared units of the score.
        low: Lower ends of their 95 % intervals over prompts [T + 1].
        high: Upper ends [T + 1].
        share: The share still open, V(i) / V(0) of the falling curve [T + 1]; 0 where nothing ever is.
        share_low: Lower ends of its intervals [T + 1].
        share_high: Upper ends [T + 1].
        decided: d of each step, without the correction to a falling curve [T].
        decided_low: Lower ends of their intervals [T].
        decided_high: Upper ends [T].
        centre: Mean progress (i + 1/2) / T of the decisions, weighted by d; None where nothing is open.
        prompts: Prompts that could be scored.
    """

    open: list[float]
    low: list[float]
    high: list[float]
    share: list[float]
    share_low: list[float]
    share_high: list[float]
    decided: list[float]
    decided_low: list[float]
    decided_high: list[float]
    centre: Bounds | None
    prompts: int


def open_variance(scores: Floats) -> Floats:
    """Return the unbiased variance [...] among continuations of scores [..., K].

    A continuation without a score (NaN) does not count; with fewer than two scores the variance is NaN.
    """
    scored = np.isfinite(scores)
    count = scored.sum(-1)
    values = np.where(scored, scores, 0.0)
    # The two maxima are for 0 and 1 scores, which the last line makes NaN.
    mean = values.sum(-1) / np.maximum(count, 1)
    deviations = np.where(scored, values - mean[..., None], 0.0)
    squares: Floats = (deviations**2).sum(-1)
    return np.where(count >= 2, squares / np.maximum(count - 1, 1), np.nan)


def along_steps(variances: Floats, points: Sequence[int], noisy: Sequence[int], n_steps: int) -> Floats:
    """Return V after each number of steps [P, T + 1], given V [P, I] at the measured points.

    Args:
        variances: Of each prompt at each point.
        points: Steps before which trajectories branch, ascending; noisy ones, the first of them included.
        noisy: Steps that draw noise, ascending.
        n_steps: T.

    Raises:
        ValueError: A point draws no noise, or the first noisy step is not one.
    """
    if list(points[:1]) != list(noisy[:1]) or not set(points) <= set(noisy):
        raise ValueError(f"points {list(points)} must be noisy steps, among them the first of {list(noisy)}")
    # true step -> how many noisy steps come before it, the axis on which V is linear
    noise_before = np.searchsorted(np.asarray(noisy), np.arange(n_steps + 1))
    knots = np.asarray([noise_before[point] for point in points] + [len(noisy)])
    # V is linear in its values at the knots, of which the last is 0
    weights = np.stack([np.interp(noise_before, knots, unit) for unit in np.eye(len(knots))])
    curves: Floats = variances @ weights[:-1]
    return curves


def decision_curve(curves: Floats) -> DecisionCurve | None:
    """Return the mean of the prompts' curves [P, T + 1] with intervals over prompts.

    Prompts with NaN are left out; None if fewer than two are left.
    """
    curves = curves[np.isfinite(curves).all(1)]
    count = len(curves)
    if count < MIN_PROMPTS:
        return None
    mean = curves.mean(0)
    draws = mean_draws(curves)
    low, high = expanded_quantiles(draws, count, LEVEL)
    # Of each draw its own differences: V(i) and V(i + 1) are of the same prompts and move together.
    decided_low, decided_high = expanded_quantiles(-np.diff(draws), count, LEVEL)
    share = share_low = share_high = np.zeros_like(mean)
    centre = None
    if mean.any():
        share = open_share(mean)
        # made to fall in every draw, as the estimate is: else draws and estimate are of different curves
        share_draws = open_share(with_something_open(draws)[0])
        share_low, share_high = expanded_quantiles(share_draws, count, LEVEL)
        centre = _bounds(_centre(share), _centre(share_draws), count)
    return DecisionCurve(
        open=mean.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        share=share.tolist(),
        share_low=share_low.tolist(),
        share_high=share_high.tolist(),
        decided=(-np.diff(mean)).tolist(),
        decided_low=decided_low.tolist(),
        decided_high=decided_high.tolist(),
        centre=centre,
        prompts=count,
    )


def centre_difference(later: Floats, earlier: Floats) -> Bounds | None:
    """Return the centre of one score's decisions minus another's, in progress, paired by prompt.

    Args:
        later: Curves [P, T + 1] of the score that is expected later.
        earlier: Curves [P, T + 1] of the other, of the same prompts.

    Returns:
        None where either has no centre, or fewer than two prompts have both curves.
    """
    both = np.isfinite(later).all(1) & np.isfinite(earlier).all(1)
    count = int(both.sum())
    if count < MIN_PROMPTS or not later[both].any() or not earlier[both].any():
        return None
    pair = (later[both], earlier[both])
    means = [_centre(open_share(curves.mean(0))) for curves in pair]
    # Equal prompts give equal draws, so the two centres of a draw are paired.
    draws = with_something_open(*(mean_draws(curves) for curves in pair))
    centres = [_centre(open_share(each)) for each in draws]
    return _bounds(means[0] - means[1], centres[0] - centres[1], count)


def open_share(curves: Floats) -> Floats:
    """Return the falling curves nearest to some [..., T + 1], as shares of their first value.

    Args:
        curves: Not negative, and somewhere above 0.
    """
    rows = [isotonic_regression(row, increasing=False).x for row in curves.reshape(-1, curves.shape[-1])]
    falling = np.stack(rows).reshape(curves.shape)
    shares: Floats = falling / falling[..., :1]
    return shares


def mean_draws(curves: Floats) -> Floats:
    """Return the mean curve in each bootstrap draw of prompts [B, T + 1]; equal prompts, equal draws."""
    # Every prompt is a cluster of its own: [T + 1, P] columns -> [T + 1, B].
    return bootstrap_means(curves.T, np.arange(len(curves)), N_BOOT, 0).T


def with_something_open(*draws: Floats) -> Floats:
    """Return the draws in which each score is open somewhere: scores x draws that are left x (T + 1).

    With few prompts of a yes-or-no score a draw may hold none in which it is, and so have no shares.
    """
    stacked = np.stack(draws)
    return stacked[:, stacked.any(-1).all(0)]


def _centre(shares: Floats) -> Floats:
    """Return sum u_i d_i / sum d_i of shares [..., T + 1], with u_i = (i + 1/2) / T."""
    n_steps = shares.shape[-1] - 1
    progress = (np.arange(n_steps) + 0.5) / n_steps
    # Shares fall from 1 to 0, so their differences sum to 1 and need no division.
    centre: Floats = -np.diff(shares) @ progress
    return centre


def _bounds(estimate: Floats, draws: Floats, count: int) -> Bounds:
    low, high = expanded_quantiles(draws, count, LEVEL)
    return Bounds(float(estimate), float(low), float(high))
