"""Group-relative advantages, one per reward.

Rewards stay apart, as a tensor [N, K], until the weights of one denoising step are known; only then does a
rule combine them (`rules`). A scalar advantage per sample could not express weights that move along the
trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from customized_grpo.kinds import KINDS, kinds_of

RELATIVE_STD_FLOOR = 1e-6
"""A group whose std is below this fraction of its largest |reward| counts as constant.

About eight units in the last place of float32: what is left there is rounding, and dividing by it would turn
rounding into advantages of unit size.
"""


Scale = Literal["group", "global", "none"]


def group_advantages(
    rewards: Tensor, group_size: int, *, scale: Scale = "group", eps: float = 1e-8
) -> Tensor:
    """Normalise each reward within its group: A = (R - mean) / (std + eps), std with ddof = 1.

    The mean is always the group's. With scale "global" the std is that of all finite rewards of the batch,
    so that groups which hardly differ count little, and with "none" it is 1: advantages in the reward's own
    units.

    A reward that is NaN or infinite takes no part in the group's statistics and gets advantage 0 (see
    `valid_samples` for what the loss should keep). A (group, reward) pair with fewer than two finite rewards,
    or with std <= max(eps, RELATIVE_STD_FLOOR * max|R|), gives exactly 0 for all its samples: a constant
    group teaches nothing. |A| is at most (G - 1) / sqrt(G).

    Args:
        rewards: [N] or [N, K]; groups are consecutive blocks of `group_size` rows.
        group_size: G, samples per prompt.
        scale: What the distance from the group's mean is divided by.
        eps: Added to the std, and its absolute floor, in units of the reward.

    Returns:
        [N, K], in float32 (float64 if the rewards are).

    Raises:
        ValueError: G < 2, N not a multiple of G, or rewards of another shape.

    Source: GRPO (arXiv 2402.03300), applied to each reward separately as in arXiv 2510.18263.
    """
    grouped = in_groups(rewards, group_size)
    finite = grouped.isfinite()
    # Dimension 1 is the samples of a group: [N / G, G, K] -> [N / G, 1, K].
    count = finite.sum(1, keepdim=True)
    values = torch.where(finite, grouped, 0.0)
    mean = values.sum(1, keepdim=True) / count.clamp_min(1)
    # The mean first, then the squares: mean(R^2) - mean(R)^2 would cancel for scores that differ little.
    centred = torch.where(finite, grouped - mean, 0.0)
    # The clamp is for groups of one finite reward; `informative` drops them.
    variance = centred.square().sum(1, keepdim=True) / (count - 1).clamp_min(1)
    std = variance.sqrt()
    # Relative to the rewards' size: rounding of a constant reward of 1,000 is larger than any fixed eps.
    floor = (RELATIVE_STD_FLOOR * values.abs().amax(1, keepdim=True)).clamp_min(eps)
    informative = (count >= 2) & (std > floor)
    if scale != "group":
        std = _batch_std(values, finite) if scale == "global" else torch.ones_like(std) - eps
    # Groups are blocks of rows, so flattening gives the order of the rows back.
    return torch.where(informative, centred / (std + eps), 0.0).flatten(0, 1)


def _batch_std(values: Tensor, finite: Tensor) -> Tensor:
    """Return the std of each reward over all groups [1, 1, K], ddof = 1; values are [P, G, K]."""
    count = finite.sum((0, 1), keepdim=True)
    mean = values.sum((0, 1), keepdim=True) / count.clamp_min(1)
    centred = torch.where(finite, values - mean, 0.0)
    return (centred.square().sum((0, 1), keepdim=True) / (count - 1).clamp_min(1)).sqrt()


def valid_samples(rewards: Tensor, group_size: int, asked: Tensor | None = None) -> Tensor:
    """Return which samples the loss keeps.

    A sample with any non-finite reward is dropped, and so are all samples of a group in which fewer than
    two remain.

    Args:
        rewards: [N] or [N, K], groups as in `group_advantages`.
        group_size: G.
        asked: Which rewards a sample was to get [N, K]; what is missing of the others drops nothing, but a
            sample that was to get none is dropped. None: all of them.

    Returns:
        Boolean [N].

    Raises:
        ValueError: As `group_advantages`.
    """
    has_reward = in_groups(rewards, group_size).isfinite()
    if asked is None:
        whole = has_reward.all(-1)
    else:
        grouped = asked.reshape(has_reward.shape)
        whole = (has_reward | ~grouped).all(-1) & grouped.any(-1)
    return (whole & (whole.sum(1, keepdim=True) >= 2)).flatten()


def informative_groups(
    rewards: Tensor, group_size: int, *, largest_std: float = 0.0, asked: Tensor | None = None
) -> Tensor:
    """Return which groups teach something: a reward tells their samples apart.

    Of each group those samples count that the loss keeps, see `valid_samples`. A group teaches nothing where
    the std of every reward is at most `largest_std`, or counts as constant as in `group_advantages`.

    Args:
        rewards: [N] or [N, K], groups as in `group_advantages`.
        group_size: G.
        largest_std: In units of the rewards; ddof = 1.
        asked: As in `valid_samples`.

    Returns:
        Boolean [N / G].

    Raises:
        ValueError: As `group_advantages`.

    Source: dynamic sampling of DAPO (arXiv 2503.14476, section 3.2), which drops groups of equal answers.
    """
    values = in_groups(rewards, group_size).flatten(0, 1)
    valid = valid_samples(rewards, group_size, asked)
    kept = values.masked_fill(~valid[:, None], math.nan)
    # distances from the group's mean: 0 for dropped samples and in groups that count as constant
    centred = in_groups(group_advantages(kept, group_size, scale="none"), group_size)
    count = valid.reshape(-1, group_size, 1).sum(1)
    std = (centred.square().sum(1) / (count - 1).clamp_min(1)).sqrt()
    return (std > largest_std).any(1)


def by_kind(
    advantages: Tensor,
    kinds: Sequence[str],
    reward_weights: Sequence[float],
    asked: Tensor | None = None,
) -> Tensor:
    """Reduce K rewards to one column for each kind: the weighted mean of the rewards of that kind.

    The mean is not normalised again: two rewards of one kind that disagree pull less than two that agree.
    Raw rewards may be reduced in the same way.

    Args:
        advantages: [N, K].
        kinds: K words of `KINDS`.
        reward_weights: K non-negative weights; only their ratios within a kind matter.
        asked: Which rewards a sample was to get [N, K]: the mean is over those. None: all of them.

    Returns:
        [N, number of kinds], the kinds as `kinds_of` gives them; NaN where a sample was to get no reward of
        the kind.

    Raises:
        ValueError: Lengths differ from K, a kind is unknown, a weight negative, or a kind has no weight at
            all.
    """
    if advantages.ndim != 2 or not len(kinds) == len(reward_weights) == advantages.shape[1]:
        lengths = f"{len(kinds)} kinds and {len(reward_weights)} weights"
        raise ValueError(f"advantages must be [N, K], got {list(advantages.shape)} with {lengths}")
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise ValueError(f"unknown reward kind {unknown[0]!r}; known: {', '.join(KINDS)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in reward_weights):
        raise ValueError(f"reward weights must be finite and >= 0, got {list(reward_weights)}")
    columns = []
    for kind in kinds_of(kinds):
        # its own columns only: a NaN of the other kind, times weight 0, would still be NaN
        of_kind = [column for column, name in enumerate(kinds) if name == kind]
        weights = advantages.new_tensor([reward_weights[column] for column in of_kind])
        if not weights.sum() > 0:
            raise ValueError(f"no {kind} reward with a positive weight among kinds {list(kinds)}")
        if asked is None:
            columns.append(advantages[:, of_kind] @ weights / weights.sum())
            continue
        shares = weights * asked[:, of_kind]
        values = torch.where(asked[:, of_kind], advantages[:, of_kind], 0.0)
        # 0 / 0 where nothing was asked
        columns.append((values * shares).sum(1) / shares.sum(1))
    return torch.stack(columns, dim=1)


def in_groups(values: Tensor, group_size: int) -> Tensor:
    """Return values [N] or [N, K] as [N / G, G, K], in float32 at least.

    Raises:
        ValueError: As `group_advantages`.
    """
    if group_size < 2:
        raise ValueError(
            f"group_size must be >= 2 (one sample has nothing to be compared with), got {group_size}"
        )
    if values.ndim not in (1, 2):
        raise ValueError(f"expected [N] or [N, K], got {list(values.shape)}")
    if len(values) % group_size:
        raise ValueError(f"{len(values)} samples are not whole groups of {group_size}")
    # bf16 has 8 bits for a score: differences inside a group would be rounded away.
    values = values if values.dtype == torch.float64 else values.float()
    return values.reshape(-1, group_size, 1 if values.ndim == 1 else values.shape[1])
