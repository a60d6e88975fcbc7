"""SARS, synergy-aware reward shaping: the bonus, and what it amounts to on average.

Source: arXiv 2510.18263.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor


def sars_bonus(prompt_advantage: Tensor, identity_advantage: Tensor, gamma: float) -> Tensor:
    """Synergy-aware reward shaping: gamma * s * tanh(A_p * A_id), s = -1 if A_p <= 0 and A_id <= 0, else +1.

    Both positive: amplified. Opposite signs: penalised. Both negative: punished further. Zero on the axes, so
    the flip of s is continuous; |bonus| <= gamma.

    Args:
        prompt_advantage: A_p, [N].
        identity_advantage: A_id, [N].
        gamma: Strength, >= 0, in units of advantage. The paper uses .4; 0 turns it off.

    Returns:
        [N].

    Source: arXiv 2510.18263, SARS.
    """
    both_low = (prompt_advantage <= 0) & (identity_advantage <= 0)
    synergy = torch.tanh(prompt_advantage * identity_advantage)
    return gamma * torch.where(both_low, -synergy, synergy)


@cache
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
    # r: correlation inside one group of G samples, which scatters around that of the rewards
    r, mass = _sample_correlations(correlation, n)
    quantile = _midpoints(64)[:, None]
    reach = n / math.sqrt(group_size) * (1 - quantile ** (2 / (n - 2))).sqrt()
    # The angle f; with `reach`, the length q, [64, 1] x [120] samples for every correlation r.
    around = 2 * math.pi * _midpoints(120)
    pulls = []
    for tilt in r.acos():
        prompt, identity = reach * around.cos(), reach * (around - tilt).cos()
        pulls.append((sars_bonus(prompt, identity, 1.0) * (prompt + identity)).mean())
    # E[A_p^2] of a z-score with ddof = 1 and G samples: (G - 1) / G
    mean_square = n / group_size
    return float((mass * torch.stack(pulls)).sum()) / (2 * (1 + correlation) * mean_square)


def _sample_correlations(correlation: float, n: int) -> tuple[Tensor, Tensor]:
    """Return nodes of a group's sample correlation, and their probabilities weighted by R (n = G - 1).

    Wishart density of (R_p, R_id, r), the common scale integrated out, in polar angle t of (R_p, R_id). The
    nodes are even in Fisher's z = atanh(r), whose spread is about 1 / sqrt(n - 2).
    """
    # six standard deviations of z on either side
    spread = 6 / math.sqrt(n - 2)
    r = torch.tanh(math.atanh(correlation) + spread * (2 * _midpoints(48) - 1))[:, None]
    angle = math.pi / 2 * _midpoints(128)
    log_density = (
        # (n - 3) / 2 of the density in r, and 1 more from dr = (1 - r^2) dz
        (n - 1) / 2 * torch.log1p(-r.square())
        + (n - 1) * torch.log(angle.sin() * angle.cos())
        + torch.log(angle.cos())
        - (n + 0.5) * torch.log1p(-correlation * r * torch.sin(2 * angle))
    )
    # softmax: normalised over the whole grid, without overflow; then the angle is summed out
    mass = torch.softmax(log_density.flatten(), 0).reshape(log_density.shape).sum(1)
    return r[:, 0], mass


def _midpoints(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count
