"""Group-relative advantages, one per reward, and the rules that combine two of them into one.

Rewards stay apart, as a tensor [N, K], until the weights of one denoising step are known; only then does a
rule combine them. A scalar advantage per sample could not express weights that move along the trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from customized_grpo.algorithms.registry import check_options, lookup
from customized_grpo.algorithms.sars import sars_bonus, sars_pull

RELATIVE_STD_FLOOR = 1e-6
"""A group whose std is below this fraction of its largest |reward| counts as constant.

About eight units in the last place of float32: what is left there is rounding, and dividing by it would turn
rounding into advantages of unit size.
"""

KINDS = ("prompt", "identity")
"""The two kinds of reward, in the order of every tensor with K = 2."""


def group_advantages(rewards: Tensor, group_size: int, *, eps: float = 1e-8) -> Tensor:
    """Normalise each reward within its group: A = (R - mean) / (std + eps), std with ddof = 1.

    A reward that is NaN or infinite takes no part in the group's statistics and gets advantage 0 (see
    `valid_samples` for what the loss should keep). A (group, reward) pair with fewer than two finite rewards,
    or with std <= max(eps, RELATIVE_STD_FLOOR * max|R|), gives exactly 0 for all its samples: a constant
    group teaches nothing. |A| is at most (G - 1) / sqrt(G).

    Args:
        rewards: [N] or [N, K]; groups are consecutive blocks of `group_size` rows.
        group_size: G, samples per prompt.
        eps: Added to the std, and its absolute floor, in units of the reward.

    Returns:
        [N, K], in float32 (float64 if the rewards are).

    Raises:
        ValueError: G < 2, N not a multiple of G, or rewards of another shape.

    Source: GRPO (arXiv 2402.03300), applied to each reward separately as in arXiv 2510.18263.
    """
    grouped = _group(rewards, group_size)
    finite = grouped.isfinite()
    count = finite.sum(1, keepdim=True)
    known = torch.where(finite, grouped, 0.0)
    mean = known.sum(1, keepdim=True) / count.clamp_min(1)
    centred = torch.where(finite, grouped - mean, 0.0)
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
    floor = (RELATIVE_STD_FLOOR * known.abs().amax(1, keepdim=True)).clamp_min(eps)
    informative = (count >= 2) & (std > floor)
    return torch.where(informative, centred / (std + eps), 0.0).flatten(0, 1)


def valid_samples(rewards: Tensor, group_size: int) -> Tensor:
    """Tell the loss which samples to keep.

    A sample with any non-finite reward is dropped, and so is every sample of a group left with fewer than
    two.

    Args:
        rewards: [N] or [N, K], groups as in `group_advantages`.
        group_size: G.

    Returns:
        Boolean [N].

    Raises:
        ValueError: As `group_advantages`.
    """
    whole = _group(rewards, group_size).isfinite().all(-1)
    return (whole & (whole.sum(1, keepdim=True) >= 2)).flatten()


def by_kind(advantages: Tensor, kinds: Sequence[str], reward_weights: Sequence[float]) -> Tensor:
    """Reduce K rewards to (prompt, identity): the weighted mean of the rewards of each kind.

    This is how more than two rewards meet rules that are written for two. The mean is not normalised again,
    so two rewards of one kind that disagree pull less than two that agree. Raw rewards may be reduced
    likewise.

    Args:
        advantages: [N, K].
        kinds: K words, each "prompt" or "identity".
        reward_weights: K non-negative weights; only their ratios within a kind matter.

    Returns:
        [N, 2], order (prompt, identity).

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
    for kind in KINDS:
        # its own columns only: a NaN of the other kind, times weight 0, would still be NaN
        of_kind = [column for column, name in enumerate(kinds) if name == kind]
        weights = advantages.new_tensor([reward_weights[column] for column in of_kind])
        if not weights.sum() > 0:
            raise ValueError(f"no {kind} reward with a positive weight among kinds {list(kinds)}")
        columns.append(advantages[:, of_kind] @ weights / weights.sum())
    return torch.stack(columns, dim=1)


@dataclass(frozen=True)
class Batch:
    """What a combination rule sees: one denoising step of whole groups of samples."""

    advantages: Tensor
    """[N, 2], per-reward advantages, order (prompt, identity)."""
    weights: Tensor
    """[N, 2], the weights of this step, same order."""
    valid: Tensor
    """Boolean [N]; the others take no part in any statistic."""
    rewards: Tensor | None
    """[N, 2], raw rewards, for the rules that normalise after combining."""
    group_size: int | None
    """G, for the rules that take statistics of a group."""

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Return (A_p, A_id), each [N]."""
        return self.advantages[:, 0], self.advantages[:, 1]

    def raw_rewards(self) -> Tensor:
        """Return the raw rewards [N, 2], or raise ValueError when the caller gave none."""
        if self.rewards is None:
            raise ValueError("this rule works on raw rewards: pass rewards=[N, 2]")
        return self.rewards

    def normalised(self, scores: Tensor) -> Tensor:
        """Return the z-score of `scores` [N] over the valid samples of each group."""
        return group_advantages(self._masked(scores), self.require_group_size())[:, 0]

    def whitened(self, scores: Tensor) -> Tensor:
        """Return the z-score of `scores` [N] over all valid samples of the batch."""
        return group_advantages(self._masked(scores), len(scores))[:, 0]

    def group_mean(self, scores: Tensor) -> Tensor:
        """Return, for each sample, the mean of `scores` [N] over the valid samples of its group."""
        mean = _group(self._masked(scores), self.require_group_size()).nanmean(1, keepdim=True)
        return mean.expand(-1, self.require_group_size(), 1).flatten()

    def _masked(self, scores: Tensor) -> Tensor:
        return torch.where(self.valid, scores, torch.nan)

    def require_group_size(self) -> int:
        """Return G, or raise ValueError when the caller gave none."""
        if self.group_size is None:
            raise ValueError("this rule takes statistics of a group: pass group_size=G")
        return self.group_size


def linear(batch: Batch) -> Tensor:
    """Naive weighted sum of per-reward advantages: w_p A_p + w_id A_id."""
    return (batch.weights * batch.advantages).sum(1)


def sum_then_normalise(batch: Batch) -> Tensor:
    """Group z-score of the weighted sum of raw rewards: the reward of larger scale wins."""
    return batch.normalised((batch.weights * batch.raw_rewards()).sum(1))


def sars(batch: Batch, *, gamma: float = 0.4) -> Tensor:
    """Customized-GRPO (arXiv 2510.18263): the weighted sum plus `sars_bonus`."""
    return linear(batch) + sars_bonus(*batch.pair, _non_negative("gamma", gamma))


def sars_no_flip(batch: Batch, *, gamma: float = 0.4) -> Tensor:
    """SARS without the sign flip (s = +1 everywhere): being low on both rewards is excused, not punished."""
    prompt, identity = batch.pair
    return linear(batch) + _non_negative("gamma", gamma) * torch.tanh(prompt * identity)


def sars_recentred(batch: Batch, *, gamma: float = 0.4) -> Tensor:
    """SARS minus its group mean, which is not zero otherwise (-.209 gamma for uncorrelated rewards)."""
    shaped = sars(batch, gamma=gamma)
    return shaped - batch.group_mean(shaped)


def sars_matched(batch: Batch, *, gamma: float = 0.4, correlation: float = 0.0) -> Tensor:
    """The control that SARS has to beat: its mean pull instead of its bonus, with the same step size.

    (w_p + gamma k) A_p + (w_id + gamma k) A_id, k = `sars_pull`: to first order, what SARS does to the
    weights of every step, and how much it lengthens the step. What SARS does beyond it is its shaping.

    Args:
        batch: The step.
        gamma: Of the SARS that is matched.
        correlation: Of the two rewards inside groups; `cgrpo doctor` measures it.
    """
    size = batch.require_group_size()
    pull = _non_negative("gamma", gamma) * sars_pull(correlation, size)
    return linear(batch) + pull * batch.advantages.sum(1)


def gdpo(batch: Batch) -> Tensor:
    """GDPO (arXiv 2601.05242): weighted sum of per-reward advantages, whitened over the whole batch."""
    return batch.whitened(linear(batch))


def gd2po_hard(batch: Batch, *, reweight: bool = True) -> Tensor:
    """GD2PO with the hard mask (arXiv 2606.16771): samples whose advantages have opposite signs get 0.

    Args:
        batch: The step.
        reweight: Scale each group by the share of its samples that were kept.
    """
    prompt, identity = batch.pair
    return _keep(batch, prompt * identity >= 0, reweight)


def gd2po_snr(batch: Batch, *, threshold: float = 0.2, reweight: bool = True) -> Tensor:
    """GD2PO with the soft mask: 0 where |A_p + A_id| / (|A_p| + |A_id|) < threshold.

    Args:
        batch: The step.
        threshold: In [0, 1]; 0 keeps everything, 1 every sample without conflict.
        reweight: Scale each group by the share of its samples that were kept.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    prompt, identity = batch.pair
    # Multiplied out, so that 0 / 0 (no signal, hence no conflict) is kept.
    return _keep(batch, (prompt + identity).abs() >= threshold * (prompt.abs() + identity.abs()), reweight)


def minimum(batch: Batch) -> Tensor:
    """The worse of the two advantages. The weights have no effect."""
    return torch.minimum(*batch.pair)


def maximum(batch: Batch) -> Tensor:
    """The better of the two advantages. The weights have no effect."""
    return torch.maximum(*batch.pair)


def harmonic(batch: Batch) -> Tensor:
    """Weighted harmonic mean of phi = softplus(A), mapped back: phi^-1(sum(w) / (w_p/phi_p + w_id/phi_id)).

    Softplus makes both positive, which a harmonic mean needs, and mapping back makes the mean of (a, a)
    be a. Increasing in both advantages, between their minimum and maximum, leaning to the worse.
    """
    inverse = (batch.weights / softplus(batch.advantages)).sum(1)
    return _inverse_softplus(batch.weights.sum(1) / inverse)


def softplus_product(batch: Batch) -> Tensor:
    """Weighted geometric mean of phi = softplus(A), mapped back: phi^-1((phi_p^w_p phi_id^w_id)^(1/sum(w))).

    Increasing in both advantages, between their minimum and maximum, leaning to the worse less than
    `harmonic`.
    """
    shares = batch.weights / batch.weights.sum(1, keepdim=True)
    return _inverse_softplus((shares * softplus(batch.advantages).log()).sum(1).exp())


def identity_gate(batch: Batch, *, tau: float = 0.7, penalty: float = 5.0) -> Tensor:
    """Prompt reward with identity as a constraint: group z-score of R_p - penalty * max(0, tau - R_id)^2.

    Args:
        batch: The step. Its weights have no effect.
        tau: Identity that is good enough, in units of the identity reward; sensibly the base model's mean.
        penalty: Price of a squared shortfall, in units of the prompt reward.
    """
    prompt, identity = batch.raw_rewards().unbind(1)
    shortfall = (tau - identity).clamp_min(0).square()
    return batch.normalised(prompt - _non_negative("penalty", penalty) * shortfall)


Rule = Callable[..., Tensor]
"""`rule(batch, *, option=default, ...) -> [N]`; the keyword-only parameters are the rule's options."""

RULES: dict[str, Rule] = {
    "linear": linear,
    "sum_then_normalise": sum_then_normalise,
    "sars": sars,
    "sars_no_flip": sars_no_flip,
    "sars_recentred": sars_recentred,
    "sars_matched": sars_matched,
    "gdpo": gdpo,
    "gd2po_hard": gd2po_hard,
    "gd2po_snr": gd2po_snr,
    "min": minimum,
    "max": maximum,
    "harmonic": harmonic,
    "softplus_product": softplus_product,
    "identity_gate": identity_gate,
}
"""Every combination rule by name. Add to it to make a rule of your own selectable."""

WEIGHT_FREE_RULES = frozenset({"min", "max", "identity_gate"})
"""Rules on which weights, and so a schedule, have no effect."""


def combine(
    name: str,
    advantages: Tensor,
    weights: Tensor,
    *,
    rewards: Tensor | None = None,
    group_size: int | None = None,
    valid: Tensor | None = None,
    adv_clip: float = 5.0,
    **options: float,
) -> Tensor:
    """Combine two advantages into the one that multiplies the ratio at one denoising step.

    Call it with whole groups, and for "gdpo" with the whole batch of all processes: several rules take
    statistics of them. The weights must be those of the step's true index (`schedules.prompt_weights`).

    Args:
        name: A key of `RULES`.
        advantages: [N, 2] from `group_advantages` (for K > 2 through `by_kind`), order (prompt, identity).
        weights: [2], or [N, 2] when rows belong to different steps; same order.
        rewards: [N, 2], needed by "sum_then_normalise" and "identity_gate" only.
        group_size: G, needed by the rules that take statistics of a group.
        valid: Boolean [N] from `valid_samples`; the others get 0 and take no part in statistics. None: all
            valid.
        adv_clip: The result is clamped to +-adv_clip; math.inf turns that off.
        options: The rule's own options, for example gamma=.4; see its docstring.

    Returns:
        [N].

    Raises:
        ValueError: Unknown rule or option, wrong shapes, an input the rule needs is missing, or adv_clip <=
            0.
    """
    rule = lookup(RULES, name, "advantage rule")
    check_options(rule, options, f"advantage rule {name!r}")
    if advantages.ndim != 2 or advantages.shape[1] != 2:
        raise ValueError(f"need advantages [N, 2], got {list(advantages.shape)}; reduce K > 2 with by_kind")
    if weights.shape not in {(2,), advantages.shape}:
        raise ValueError(f"weights must be [2] or {list(advantages.shape)}, got {list(weights.shape)}")
    if not adv_clip > 0:
        raise ValueError(f"adv_clip must be > 0, got {adv_clip}")
    kept = torch.ones_like(advantages[:, 0], dtype=torch.bool) if valid is None else valid
    batch = Batch(advantages, weights.to(advantages).expand_as(advantages), kept, rewards, group_size)
    return torch.where(kept, rule(batch, **options), 0.0).clamp(-adv_clip, adv_clip)


def _group(values: Tensor, group_size: int) -> Tensor:
    """Reshape [N] or [N, K] to [N / G, G, K], in float32 at least."""
    if group_size < 2:
        raise ValueError(
            f"group_size must be >= 2 (one sample has nothing to be compared with), got {group_size}"
        )
    if values.ndim not in (1, 2):
        raise ValueError(f"expected [N] or [N, K], got {list(values.shape)}")
    if len(values) % group_size:
        raise ValueError(f"{len(values)} samples are not whole groups of {group_size}")
    values = values if values.dtype == torch.float64 else values.float()
    return values.reshape(-1, group_size, 1 if values.ndim == 1 else values.shape[1])


def _keep(batch: Batch, mask: Tensor, reweight: bool) -> Tensor:
    kept = torch.where(mask, linear(batch), 0.0)
    return kept * batch.group_mean(mask.to(kept)) if reweight else kept


def _inverse_softplus(positive: Tensor) -> Tensor:
    # log(exp(y) - 1) without overflow for large y.
    return positive + torch.log(-torch.expm1(-positive))


def _non_negative(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and >= 0, got {value}")
    return value
