"""Learning on the forward process: finished samples are noised again, and the velocity there is trained.

No transition of the rollout is asked for its probability, so a rollout may use any solver and few steps, and
only its clean samples are kept. Two algorithms do it:

* NFT (DiffusionNFT, arXiv 2509.16117): a sample of high advantage is a target of an implicit positive policy,
  one of low advantage a target of an implicit negative policy; both are lines through the old velocity and
  the trained one.
* AWM (Advantage Weighted Matching, arXiv 2509.25050): the flow-matching error is taken for minus the
  log-probability of the sample, in the ratio of PPO.

Rectified flow as in `samplers`: x_s = (1 - s) x0 + s noise, the target of the velocity is noise - x0.
Progress u in [0, 1) counts denoising steps as a schedule does: 0 is pure noise.

Shapes: B samples, K noise levels, T denoising steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

WEIGHT_FLOOR = 1e-5
"""Smallest mean error by which NFT divides a square, in latent units (the paper's)."""

LEVEL_WEIGHTS: Mapping[str, Callable[[float], float]] = {
    "uniform": lambda sigma: 1.0,
    "sigma": lambda sigma: sigma,
    "sigma_squared": lambda sigma: sigma * sigma,
}
"""Weight of a noise level in AWM's log-probability, by its name in recipes."""


def draw_progress(n_levels: int, generator: torch.Generator) -> Tensor:
    """Draw K values of progress in [0, 1), one in each of K equal parts, ascending.

    One in each part: every iteration trains early and late levels, and the mean over iterations is uniform.

    Returns:
        [K], float64.

    Raises:
        ValueError: K < 1.
    """
    if n_levels < 1:
        raise ValueError(f"need at least one noise level, got {n_levels}")
    inside = torch.rand(n_levels, generator=generator, dtype=torch.float64)
    return (torch.arange(n_levels, dtype=torch.float64) + inside) / n_levels


def levels_at(progress: Tensor, sigmas: Tensor) -> Tensor:
    """Return the noise levels at values of progress, on a schedule of T steps.

    At progress i / T it is sigmas[i], and in between it is interpolated linearly. So a checkpoint's own shift
    decides how many levels are noisy ones, in training as in sampling.

    Args:
        progress: [K] in [0, 1).
        sigmas: Noise levels [T + 1], falling, the last one 0.

    Returns:
        [K], in the type of `sigmas`.

    Raises:
        ValueError: Progress is outside [0, 1).
    """
    if not bool(((progress >= 0) & (progress < 1)).all()):
        raise ValueError(f"progress must be in [0, 1), got {progress.tolist()}")
    place = progress * (len(sigmas) - 1)
    step = place.floor().long()
    part = (place - step).to(sigmas)
    return torch.lerp(sigmas[step], sigmas[step + 1], part)


def noised(clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Return x_s = (1 - s) x0 + s noise; all [B, ...], s = sigma in [0, 1]."""
    return torch.lerp(clean, noise, sigma)


def optimality(advantage: Tensor, bound: float) -> Tensor:
    """Return r = clip(1/2 + A / (2 bound), 0, 1): how far a sample is a target of the positive policy.

    Args:
        advantage: A [B], combined at this noise level.
        bound: Advantage at which a sample is wholly one, > 0; A_max in the paper.

    Raises:
        ValueError: bound <= 0.

    Source: DiffusionNFT (arXiv 2509.16117, section 3.4).
    """
    if not bound > 0:
        raise ValueError(f"bound must be > 0, got {bound}")
    return (0.5 + advantage / (2 * bound)).clamp(0, 1)


def implicit_policies(velocity: Tensor, old_velocity: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return NFT's positive and negative velocities, (1 - b) v_old + b v and (1 + b) v_old - b v.

    If both fit their shares of the samples in the mean square, the trained velocity is
    v = v_old + (2 / b) E[r] (v_good - v_old), v_good that of the samples weighted by r.

    Args:
        velocity: v [B, ...], being trained.
        old_velocity: v_old [B, ...], of the policy that drew the samples, without gradient.
        beta: b > 0; the smaller, the farther the optimum is from v_old.

    Raises:
        ValueError: beta <= 0.

    Source: DiffusionNFT (arXiv 2509.16117, theorem 3.2).
    """
    if not beta > 0:
        raise ValueError(f"beta must be > 0, got {beta}")
    step = beta * (velocity - old_velocity)
    return old_velocity + step, old_velocity - step


def nft_loss(
    x: Tensor,
    clean: Tensor,
    sigma: float,
    velocity: Tensor,
    old_velocity: Tensor,
    advantage: Tensor,
    *,
    beta: float,
    bound: float,
) -> Tensor:
    """Return NFT's loss of each sample at one noise level.

        (bound / b) [r |x - s v+ - x0|^2 / w+ + (1 - r) |x - s v- - x0|^2 / w-],   r = optimality(A, bound)

    |.|^2 is a mean over the latent dimensions, and w = mean |x - s v - x0|, at least WEIGHT_FLOOR and without
    gradient, brings all levels to one scale. At v = v_old the gradient is A times that of the flow-matching
    error s^2 |v - (noise - x0)|^2 / w, whatever b and the bound are.

    Args:
        x: `noised` samples [B, ...].
        clean: x0 [B, ...].
        sigma: s.
        velocity: v [B, ...], being trained.
        old_velocity: v_old [B, ...], without gradient.
        advantage: A [B], combined at this level.
        beta: b > 0.
        bound: A_max > 0.

    Returns:
        [B].

    Raises:
        ValueError: See `optimality` and `implicit_policies`.

    Source: DiffusionNFT (arXiv 2509.16117, eq. 5, and the adaptive weights of section 3.4).
    """
    positive, negative = implicit_policies(velocity, old_velocity, beta)
    share = optimality(advantage, bound)
    good = _weighted_square(x - sigma * positive - clean)
    bad = _weighted_square(x - sigma * negative - clean)
    return bound / beta * (share * good + (1 - share) * bad)


def matching_log_prob(velocity: Tensor, clean: Tensor, noise: Tensor, weight: float) -> Tensor:
    """Return AWM's stand-in for a log-probability: -weight mean |v - (noise - x0)|^2.

    The mean is over the latent dimensions. Constants that the ratio cancels are left out.

    Args:
        velocity: v at x_s [B, ...].
        clean: x0 [B, ...].
        noise: [B, ...], the same for the old and the trained policy.
        weight: Of the noise level, see `LEVEL_WEIGHTS`.

    Returns:
        [B].

    Source: AWM (arXiv 2509.25050).
    """
    return -weight * _latent_mean((velocity - (noise - clean)).square())


def velocity_divergence(velocity: Tensor, reference: Tensor) -> Tensor:
    """Return mean |v - v_ref|^2 over the latent dimensions [B]: 0 where the two models agree.

    Times (ds)^2 / (2 std^2) it is the KL of two Gaussian steps of length ds from the same state.
    """
    return _latent_mean((velocity - reference).square())


def old_decay(iteration: int, growth: float, largest: float) -> float:
    """Return the share that the old policy keeps of itself after an iteration: min(growth x i, largest).

    At first the old policy is the trained one (on-policy); later it follows slowly, which is steadier.

    Args:
        iteration: i, number of finished iterations before this one.
        growth: Per iteration, >= 0.
        largest: In [0, 1).

    Source: DiffusionNFT (arXiv 2509.16117, section 3.4).
    """
    return min(growth * iteration, largest)


def _weighted_square(error: Tensor) -> Tensor:
    """Return mean(error^2) / mean(|error|) over the latent dimensions [B]; the divisor has no gradient."""
    weight = _latent_mean(error.detach().abs()).clamp_min(WEIGHT_FLOOR)
    return _latent_mean(error.square()) / weight


def _latent_mean(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).mean(1)
