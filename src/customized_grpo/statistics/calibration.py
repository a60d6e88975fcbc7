"""Calibrated TDW: prompt weights from what each step decides, see `decisions`.

    w_p(i) = (s_p(i) + c) / (s_p(i) + s_id(i) + 2 c),   clipped to [.1, .9]

with s_k(i) = d_k(i) / sum d_k, the share of quality k that step i decides. Three steps tame the noise of d:

1. it is taken from the nearest curve V that falls, so that none is negative;
2. it is averaged over neighbouring noisy steps with a Gaussian of 5 % of the trajectory;
3. c = .002 takes a weight gently to .5 where a step decides next to nothing of either.

A step without noise decides nothing, and has weight .5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from customized_grpo.statistics.decisions import (
    LEVEL,
    MIN_PROMPTS,
    mean_draws,
    open_share,
    with_something_open,
)
from customized_grpo.statistics.intervals import expanded_quantiles

Floats = NDArray[np.float64]
# Of the trajectory: 1.25 steps of 25. Simulated for scores of yes or no that are decided early and late, with
# 12 continuations, the root mean square error of a weight is .08 for 32 prompts, .06 for 64 and .05 for 128;
# .12, .10 and .08 where prompts differ so much that most have nothing open. .04 and .06 are rarely better.
BANDWIDTH = 0.05
NEGLIGIBLE = 0.002  # c, as a share of everything that is decided
LOWEST = 0.1
HIGHEST = 0.9


class Weights(NamedTuple):
    """Prompt weights of each step [T] with their 95 % intervals over prompts."""

    weights: list[float]
    low: list[float]
    high: list[float]


def calibrated_weights(prompt: Floats, identity: Floats, noisy: Sequence[int]) -> Floats:
    """Return the prompt weight of each step [..., T].

    Args:
        prompt: V of the prompt's score after 0 to T steps [..., T + 1], somewhere above 0.
        identity: The same of identity.
        noisy: Steps that draw noise, ascending.
    """
    steps = np.asarray(noisy)
    shares = [decided_shares(curve, steps) for curve in (prompt, identity)]
    # c in both parts: where neither score is decided, the weight goes to .5 and not to noise over noise.
    ratio = (shares[0] + NEGLIGIBLE) / (shares[0] + shares[1] + 2 * NEGLIGIBLE)
    weights = np.full((*prompt.shape[:-1], prompt.shape[-1] - 1), 0.5)
    # `ratio` counts noisy steps, `weights` true steps; those without noise keep .5.
    weights[..., steps] = ratio.clip(LOWEST, HIGHEST)
    return weights


def decided_shares(curves: Floats, steps: NDArray[np.int64]) -> Floats:
    """Return the smoothed share of everything open that each noisy step decides; they add up to 1.

    Args:
        curves: V after 0 to T steps [..., T + 1], somewhere above 0.
        steps: The noisy steps, ascending.
    """
    decided = -np.diff(open_share(curves))[..., steps]
    # from a share of the trajectory to steps
    width = BANDWIDTH * (curves.shape[-1] - 1)
    # By distance in true steps: noisy steps on either side of a gap hardly mix.
    kernel = np.exp(-0.5 * ((steps[:, None] - steps) / width) ** 2)
    smooth = decided @ (kernel / kernel.sum(1, keepdims=True)).T
    shares: Floats = smooth / smooth.sum(-1, keepdims=True)
    return shares


def calibrate(prompt: Floats, identity: Floats, noisy: Sequence[int]) -> Weights | None:
    """Return calibrated weights of the prompts' curves [P, T + 1], with intervals over prompts.

    Prompts with NaN are left out; None if fewer than two are left, or one of both scores is never open.
    """
    both = np.isfinite(prompt).all(1) & np.isfinite(identity).all(1)
    count = int(both.sum())
    if count < MIN_PROMPTS or not prompt[both].any() or not identity[both].any():
        return None
    draws = with_something_open(mean_draws(prompt[both]), mean_draws(identity[both]))
    low, high = expanded_quantiles(calibrated_weights(draws[0], draws[1], noisy), count, LEVEL)
    weights = calibrated_weights(prompt[both].mean(0), identity[both].mean(0), noisy)
    return Weights(weights.tolist(), low.tolist(), high.tolist())
