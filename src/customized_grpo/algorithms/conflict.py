"""What conflict between two rewards should look like, and what SARS is worth as plain weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from customized_grpo.algorithms.advantages import sars_bonus


def quadrants(advantages: Tensor) -> dict[str, float]:
    """Return the shares of samples whose two advantages disagree, are both positive, both negative.

    A zero advantage (masked sample, constant group) belongs to no quadrant and is not counted; when nothing
    is left all three shares are 0, otherwise they sum to 1. Draw `conflict_null` beside the first.

    Args:
        advantages: [N, 2].

    Returns:
        {"conflict": ..., "both_positive": ..., "both_negative": ...}.

    Raises:
        ValueError: Another shape.
    """
    if advantages.ndim != 2 or advantages.shape[1] != 2:
        raise ValueError(f"advantages must be [N, 2], got {list(advantages.shape)}")
    prompt, identity = advantages.sign().unbind(1)
    count = max(1, int((prompt * identity != 0).sum()))
    masks = {
        "conflict": prompt * identity < 0,
        "both_positive": (prompt > 0) & (identity > 0),
        "both_negative": (prompt < 0) & (identity < 0),
    }
    return {name: int(mask.sum()) / count for name, mask in masks.items()}


def conflict_null(correlation: float) -> float:
    """Return the share of conflict that two Gaussian rewards of this correlation have: arccos(rho) / pi.

    Half of all samples conflict when rewards are merely unrelated, so a measured share means little without
    it.

    Raises:
        ValueError: Correlation outside [-1, 1].
    """
    if not -1 <= correlation <= 1:
        raise ValueError(f"a correlation must be in [-1, 1], got {correlation}")
    return math.acos(correlation) / math.pi


def sars_pull(correlation: float, group_size: int = 12) -> float:
    """Return k, what SARS adds to each weight per unit of gamma, for linear rewards and a Gaussian policy.

    The mean gradient is then (w_p + gamma k) g_p + (w_id + gamma k) g_id, up to a common factor. In conflict
    the bonus is even under the exchange of both signs, so the conflict penalty has no mean gradient at all;
    the quadrants of agreement pull towards equal weights. With n = G - 1, mean over the samples of a group,

        k = E[b (A_p + A_id) R] / (2 (1 + rho) E[A_p^2 R]),   b = the bonus at gamma = 1, R = |centred
        rewards|.

    Given the sample correlation r = cos(t) of a group, a sample's advantages are (q cos(f), q cos(f - t))
    with f uniform and (1 - q^2 G / n^2)^((n - 2) / 2) uniform: two midpoint rules, and a third over r (error
    below 1e-3). Falls with G: at rho = 0, .247 for G = 8, .240 for 12 and .228 in the limit.

    Args:
        correlation: Of the two rewards, strictly between -1 and 1.
        group_size: G >= 4.

    Raises:
        ValueError: An argument outside its range.
    """
    if not -1 < correlation < 1 or group_size < 4:
        raise ValueError(f"need -1 < correlation < 1 and group_size >= 4, got {correlation} and {group_size}")
    n = group_size - 1
    r, mass = _sample_correlations(correlation, n)
    quantile = _midpoints(64)[:, None]
    reach = n / math.sqrt(group_size) * (1 - quantile ** (2 / (n - 2))).sqrt()
    around = 2 * math.pi * _midpoints(120)
    pulls = []
    for tilt in r.acos():
        prompt, identity = reach * around.cos(), reach * (around - tilt).cos()
        pulls.append((sars_bonus(prompt, identity, 1.0) * (prompt + identity)).mean())
    mean_square = n / group_size
    return float((mass * torch.stack(pulls)).sum()) / (2 * (1 + correlation) * mean_square)


class MatchedWeights(NamedTuple):
    """Constant weights with the same mean gradient direction as SARS, and the step they must be scaled by."""

    prompt: float
    identity: float
    step_scale: float


def matched_constant_weights(
    prompt_weight: float, gamma: float, correlation: float, group_size: int = 12
) -> MatchedWeights:
    """Return the control that SARS has to beat: w' = (w + gamma k) / (1 + 2 gamma k), k from `sars_pull`.

    To first order SARS is a pull towards equal weights, with a step longer by `step_scale` = 1 + 2 gamma k. A
    comparison that does not match both may credit the shaping with what the weights did.

    Args:
        prompt_weight: w_p in [0, 1]; w_id = 1 - w_p.
        gamma: SARS strength, >= 0.
        correlation: Of the two advantages, strictly between -1 and 1.
        group_size: G >= 4.

    Raises:
        ValueError: An argument outside its range.
    """
    if not 0 <= prompt_weight <= 1 or gamma < 0:
        raise ValueError(f"need prompt_weight in [0, 1] and gamma >= 0, got {prompt_weight} and {gamma}")
    pull = gamma * sars_pull(correlation, group_size)
    scale = 1 + 2 * pull
    return MatchedWeights((prompt_weight + pull) / scale, (1 - prompt_weight + pull) / scale, scale)


def _sample_correlations(correlation: float, n: int) -> tuple[Tensor, Tensor]:
    """Return nodes of a group's sample correlation, and their probabilities weighted by R (n = G - 1).

    Wishart density of (R_p, R_id, r), the common scale integrated out, in polar angle t of (R_p, R_id). The
    nodes are even in Fisher's z = atanh(r), whose spread is about 1 / sqrt(n - 2).
    """
    spread = 6 / math.sqrt(n - 2)
    r = torch.tanh(math.atanh(correlation) + spread * (2 * _midpoints(48) - 1))[:, None]
    angle = math.pi / 2 * _midpoints(128)
    log_density = (
        (n - 1) / 2 * torch.log1p(-r.square())
        + (n - 1) * torch.log(angle.sin() * angle.cos())
        + torch.log(angle.cos())
        - (n + 0.5) * torch.log1p(-correlation * r * torch.sin(2 * angle))
    )
    mass = torch.softmax(log_density.flatten(), 0).reshape(log_density.shape).sum(1)
    return r[:, 0], mass


def _midpoints(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count
