"""The clipped policy loss of GRPO on denoising transitions, its KL penalty, and GRPO-Guard's ratio.

Departures from the textbook: one advantage per (sample, step), combined from per-reward advantages with that
step's weights; log-probabilities are means over the latent dimensions, so clip ranges are of the order of
1e-4; no critic, no entropy bonus.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.algorithms.samplers import require_positive


@dataclass(frozen=True)
class PolicyLoss:
    """What one batch of transitions gives."""

    loss: Tensor
    """Scalar, to be minimised."""
    ratio: Tensor
    """[B], detached; 1 for samples that are not valid."""
    clip_fraction: Tensor
    """Scalar, detached: share of the valid samples whose gradient the clip has stopped."""
    n_valid: Tensor
    """Scalar: number of valid samples."""


def policy_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    clip_range: float,
    *,
    valid: Tensor | None = None,
    total: int | None = None,
) -> PolicyLoss:
    """Clipped surrogate: mean(max(-A r, -A clip(r, 1 - eps, 1 + eps))), r = exp(log_prob - old_log_prob).

    At r = 1 its gradient is -A dlog_prob, that is -A mean(z / std dm) for a Gaussian transition with x' = m +
    std z.

    Args:
        log_prob: [B], under the policy being trained (carries the gradient).
        old_log_prob: [B], under the policy that drew the sample.
        advantage: [B], from `advantages.combine` with the weights of each row's step.
        clip_range: eps > 0.
        valid: Boolean [B] from `advantages.valid_samples`; the others count neither in the sum nor in
            its divisor, even if they hold NaN. None: all valid.
        total: Divide the sum by this instead of by the number of valid samples: the count in the whole batch,
            so that the losses of its micro-batches add up to its loss.

    Raises:
        ValueError: Shapes differ, clip_range <= 0 or total < 1.

    Source: PPO (arXiv 1707.06347, eq. 7) with GRPO's advantages (arXiv 2402.03300).
    """
    if not log_prob.shape == old_log_prob.shape == advantage.shape or log_prob.ndim != 1:
        shapes = [list(t.shape) for t in (log_prob, old_log_prob, advantage)]
        raise ValueError(f"log_prob, old_log_prob and advantage must all be [B], got {shapes}")
    if not clip_range > 0 or (total is not None and total < 1):
        raise ValueError(f"need clip_range > 0 and total >= 1, got {clip_range} and {total}")
    kept = torch.ones_like(log_prob, dtype=torch.bool) if valid is None else valid
    # Masked before exp and product, so that a NaN in a dropped row reaches neither value nor gradient.
    ratio = torch.where(kept, log_prob - old_log_prob, 0.0).exp()
    weight = torch.where(kept, advantage, 0.0)
    unclipped = -weight * ratio
    clipped = -weight * ratio.clamp(1 - clip_range, 1 + clip_range)
    n_valid = kept.sum()
    count = n_valid.clamp_min(1)
    # The larger loss is the smaller gain: PPO's pessimistic bound, with the sign of a loss.
    loss = torch.maximum(unclipped, clipped).sum() / (count if total is None else total)
    # Where the clipped loss wins, the gradient is 0; equality is an unclipped ratio.
    return PolicyLoss(loss, ratio.detach(), (clipped > unclipped).detach().sum() / count, n_valid)


def gaussian_kl(mean: Tensor, reference_mean: Tensor, std: Tensor) -> Tensor:
    """KL of two Gaussians of equal std, averaged over the latent dimensions: mean((m - m_ref)^2) / (2 std^2).

    Args:
        mean: [B, ...], under the policy being trained.
        reference_mean: [B, ...], under the frozen base.
        std: [] or [B, 1, ...], > 0.

    Returns:
        [B]; 0 when the means agree.

    Raises:
        ValueError: Some std is not > 0.
    """
    require_positive(std)
    # With one std the log terms of the KL cancel and only the distance of the means is left.
    return _latent_mean(((mean - reference_mean) / std).square()) / 2


def normalised_log_ratio(
    log_prob: Tensor, old_log_prob: Tensor, mean: Tensor, old_mean: Tensor, std: Tensor
) -> Tensor:
    """GRPO-Guard's log-ratio: std * (log_prob - old_log_prob + mean(dm^2) / (2 std^2)), dm = mean - old_mean.

    For x' = old_mean + std z this equals mean(dm z): centred on 0 and of a spread that does not depend on the
    step, where the plain log-ratio is shifted down by the middle term. Feed it to `policy_loss` as log_prob
    with zeros for old_log_prob, and divide that step's loss by D = sigma - sigma_next, as that paper's code
    does.

    Args:
        log_prob: [B], mean over the latent dimensions, under the policy being trained.
        old_log_prob: [B], under the policy that drew the sample.
        mean: [B, ...], under the policy being trained.
        old_mean: [B, ...], under the policy that drew the sample.
        std: [] or [B, 1, ...], > 0, common to both.

    Returns:
        [B].

    Raises:
        ValueError: Some std is not > 0.

    Source: GRPO-Guard (arXiv 2510.22319, eq. 8).
    """
    require_positive(std)
    shift = _latent_mean((mean - old_mean).square())
    # [B, 1, ...] -> [B], beside the log-probabilities
    spread = std.reshape(-1) if std.ndim else std
    return spread * (log_prob - old_log_prob) + shift / (2 * spread)


def _latent_mean(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).mean(1)
