"""The rules that combine the two advantages of a sample into one, at one denoising step.

A rule is a class: its fields are its options, its call is its formula. `RULES` has every rule by name; one of
your own is a subclass of `Rule` (docs/extending.md). `combine` applies a rule as the loss does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from customized_grpo.algorithms.advantages import group_advantages, in_groups
from customized_grpo.algorithms.sars import sars_bonus, sars_pull
from customized_grpo.fields import NonNegative, Section, Share

Correlation = Annotated[float, Field(gt=-1, lt=1)]


@dataclass(frozen=True)
class Batch:
    """One denoising step of whole groups of samples, as a combination rule sees it."""

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

    def weighted_sum(self) -> Tensor:
        """Return w_p A_p + w_id A_id, [N]."""
        return (self.weights * self.advantages).sum(1)

    def raw_rewards(self) -> Tensor:
        """Return the raw rewards [N, 2].

        Raises:
            ValueError: The caller gave none.
        """
        if self.rewards is None:
            raise ValueError("this rule works on raw rewards: pass rewards=[N, 2]")
        return self.rewards

    def normalised(self, scores: Tensor) -> Tensor:
        """Return the z-score of `scores` [N] over the valid samples of each group."""
        return group_advantages(self._masked(scores), self.require_group_size())[:, 0]

    def whitened(self, scores: Tensor) -> Tensor:
        """Return the z-score of `scores` [N] over all valid samples of the batch."""
        # one group as large as the batch: same formula, same treatment of NaN and of constant scores
        return group_advantages(self._masked(scores), len(scores))[:, 0]

    def group_mean(self, scores: Tensor) -> Tensor:
        """Return, for each sample, the mean of `scores` [N] over the valid samples of its group."""
        group_size = self.require_group_size()
        mean = in_groups(self._masked(scores), group_size).nanmean(1, keepdim=True)
        # [N / G, 1, 1] -> [N / G, G, 1] -> [N]: back to one number per sample, in the order of the samples
        return mean.expand(-1, group_size, 1).flatten()

    def _masked(self, scores: Tensor) -> Tensor:
        # NaN is what tells `group_advantages` and `nanmean` to leave a sample out.
        return torch.where(self.valid, scores, torch.nan)

    def require_group_size(self) -> int:
        """Return G.

        Raises:
            ValueError: The caller gave none.
        """
        if self.group_size is None:
            raise ValueError("this rule takes statistics of a group: pass group_size=G")
        return self.group_size


class Rule(Section, ABC):
    """A combination rule; the fields of a subclass are its options.

    Attributes:
        min_group_size: Smallest group for which the rule is defined.
    """

    min_group_size: ClassVar[int] = 2

    @abstractmethod
    def __call__(self, batch: Batch) -> Tensor:
        """Return the combined advantage [N] of one denoising step."""


class Linear(Rule):
    """Naive weighted sum of per-reward advantages: w_p A_p + w_id A_id."""

    def __call__(self, batch: Batch) -> Tensor:
        return batch.weighted_sum()


class SumThenNormalise(Rule):
    """Group z-score of the weighted sum of raw rewards: the reward of larger scale wins."""

    def __call__(self, batch: Batch) -> Tensor:
        return batch.normalised((batch.weights * batch.raw_rewards()).sum(1))


class Sars(Rule):
    """Customized-GRPO (arXiv 2510.18263): the weighted sum plus `sars_bonus`."""

    gamma: NonNegative = 0.4
    """Largest bonus or penalty, in units of the advantage; the paper uses .4."""

    def __call__(self, batch: Batch) -> Tensor:
        # The bonus has no weights: it is the same at every step, while the sum moves with the schedule.
        return batch.weighted_sum() + sars_bonus(*batch.pair, self.gamma)


class SarsNoFlip(Rule):
    """SARS without the sign flip (s = +1 everywhere): being low on both rewards is excused, not punished."""

    gamma: NonNegative = 0.4
    """Largest bonus or penalty, in units of the advantage."""

    def __call__(self, batch: Batch) -> Tensor:
        prompt, identity = batch.pair
        return batch.weighted_sum() + self.gamma * torch.tanh(prompt * identity)


class SarsRecentred(Sars):
    """SARS minus its group mean, which is not zero otherwise (-.209 gamma for uncorrelated rewards)."""

    def __call__(self, batch: Batch) -> Tensor:
        shaped = super().__call__(batch)
        return shaped - batch.group_mean(shaped)


class SarsMatched(Sars):
    """The control that SARS has to beat: its mean pull instead of its bonus, with the same step size.

    (w_p + gamma k) A_p + (w_id + gamma k) A_id, k = `sars_pull`: to first order, what SARS does to the
    weights of every step, and how much it lengthens the step. What SARS does beyond it is its shaping.
    """

    min_group_size: ClassVar[int] = 4

    correlation: Correlation = 0.0
    """Correlation of the two rewards inside groups, which `cgrpo doctor` measures."""

    def __call__(self, batch: Batch) -> Tensor:
        pull = self.gamma * sars_pull(self.correlation, batch.require_group_size())
        # (w_p + pull) A_p + (w_id + pull) A_id, multiplied out
        return batch.weighted_sum() + pull * batch.advantages.sum(1)


class Gdpo(Rule):
    """GDPO (arXiv 2601.05242): weighted sum of per-reward advantages, whitened over the whole batch."""

    def __call__(self, batch: Batch) -> Tensor:
        return batch.whitened(batch.weighted_sum())


class Gd2poHard(Rule):
    """GD2PO with the hard mask (arXiv 2606.16771): samples whose advantages have opposite signs get 0."""

    reweight: bool = True
    """Whether each group is scaled by the share of its samples that the mask leaves."""

    def __call__(self, batch: Batch) -> Tensor:
        prompt, identity = batch.pair
        # Advantage 0 (a constant group) is no conflict: it stays in.
        return _masked_sum(batch, prompt * identity >= 0, self.reweight)


class Gd2poSnr(Rule):
    """GD2PO with the soft mask: 0 where |A_p + A_id| / (|A_p| + |A_id|) is below a threshold."""

    snr_threshold: Share = 0.2
    """The threshold: 0 leaves every sample in, 1 only those without conflict."""
    reweight: bool = True
    """Whether each group is scaled by the share of its samples that the mask leaves."""

    def __call__(self, batch: Batch) -> Tensor:
        prompt, identity = batch.pair
        # Multiplied out, so that 0 / 0 (no signal, hence no conflict) stays in.
        signal = (prompt + identity).abs()
        agrees = signal >= self.snr_threshold * (prompt.abs() + identity.abs())
        return _masked_sum(batch, agrees, self.reweight)


class Minimum(Rule):
    """The worse of the two advantages. The weights have no effect."""

    def __call__(self, batch: Batch) -> Tensor:
        return torch.minimum(*batch.pair)


class Maximum(Rule):
    """The better of the two advantages. The weights have no effect."""

    def __call__(self, batch: Batch) -> Tensor:
        return torch.maximum(*batch.pair)


class Harmonic(Rule):
    """Weighted harmonic mean of phi = softplus(A), mapped back: phi^-1(sum(w) / (w_p/phi_p + w_id/phi_id)).

    Softplus makes both positive, which a harmonic mean needs, and mapping back makes the mean of (a, a)
    be a. Increasing in both advantages, between their minimum and maximum, leaning to the worse.
    """

    def __call__(self, batch: Batch) -> Tensor:
        # softplus is 0 in float32 below -104 only; |A| is at most (G - 1) / sqrt(G), 3.2 for 12 samples
        inverse = (batch.weights / softplus(batch.advantages)).sum(1)
        return _inverse_softplus(batch.weights.sum(1) / inverse)


class SoftplusProduct(Rule):
    """Weighted geometric mean of phi = softplus(A), mapped back: phi^-1((phi_p^w_p phi_id^w_id)^(1/sum(w))).

    Increasing in both advantages, between their minimum and maximum, leaning to the worse less than
    `Harmonic`.
    """

    def __call__(self, batch: Batch) -> Tensor:
        # The exponents of a geometric mean sum to 1, whatever the scale of the weights.
        shares = batch.weights / batch.weights.sum(1, keepdim=True)
        return _inverse_softplus((shares * softplus(batch.advantages).log()).sum(1).exp())


class IdentityGate(Rule):
    """Prompt reward with identity as a constraint: group z-score of R_p - penalty * max(0, tau - R_id)^2.

    The weights have no effect.
    """

    tau: float = 0.7
    """Identity reward that is good enough, in its units; the base model's mean is a sensible value."""
    penalty: NonNegative = 5.0
    """Price of a squared shortfall of identity, in units of the prompt reward."""

    def __call__(self, batch: Batch) -> Tensor:
        prompt, identity = batch.raw_rewards().unbind(1)
        # Identity above tau earns nothing: a copy has no more of it to offer than a good sample.
        shortfall = (self.tau - identity).clamp_min(0).square()
        return batch.normalised(prompt - self.penalty * shortfall)


class Cme(Rule):
    """Consistency-modulated execution (FIRM, arXiv 2603.12247): group z-score of R_p (base + bonus R_id).

    Following the prompt is the base of every reward, and identity a bonus on it: a copy, which does not
    follow the prompt, earns nothing. Rewards below 0 count as 0. The weights have no effect.
    """

    base: NonNegative = 0.5
    """What following the prompt is worth without identity. The default is a choice of this package."""
    bonus: NonNegative = 0.5
    """What an identity reward of 1 adds."""

    def __call__(self, batch: Batch) -> Tensor:
        # Two factors below 0 would multiply to a reward.
        prompt, identity = batch.raw_rewards().clamp_min(0).unbind(1)
        return batch.normalised(prompt * (self.base + self.bonus * identity))


RULES: Mapping[str, type[Rule]] = {
    "linear": Linear,
    "sum_then_normalise": SumThenNormalise,
    "sars": Sars,
    "sars_no_flip": SarsNoFlip,
    "sars_recentred": SarsRecentred,
    "sars_matched": SarsMatched,
    "gdpo": Gdpo,
    "gd2po_hard": Gd2poHard,
    "gd2po_snr": Gd2poSnr,
    "min": Minimum,
    "max": Maximum,
    "harmonic": Harmonic,
    "softplus_product": SoftplusProduct,
    "identity_gate": IdentityGate,
    "cme": Cme,
}
"""Every combination rule of the package by its name in recipes."""


def combine(
    rule: Rule,
    advantages: Tensor,
    weights: Tensor,
    *,
    rewards: Tensor | None = None,
    group_size: int | None = None,
    valid: Tensor | None = None,
    quality: Tensor | None = None,
    adv_clip: float = 5.0,
) -> Tensor:
    """Combine two advantages into the one that multiplies the ratio at one denoising step.

    With a third, `quality`, the result is rule(A_p, A_id; w_p, w_id) + quality, for every rule.

    Call it with whole groups, and for `Gdpo` with the whole batch of all processes: several rules take
    statistics of them. The weights must be those of the step's true index (`schedules.prompt_weights`).

    Args:
        rule: The rule, with its options.
        advantages: [N, 2] from `group_advantages` (for K > 2 through `by_kind`), order (prompt, identity).
        weights: [2], or [N, 2] when rows belong to different steps; same order.
        rewards: [N, 2], needed by `SumThenNormalise`, `IdentityGate` and `Cme` only.
        group_size: G, needed by the rules that take statistics of a group.
        valid: Boolean [N] from `valid_samples`; the others get 0 and take no part in statistics. None: all
            valid.
        quality: w_q A_q [N], the advantage of the quality rewards times its weight; None without any.
        adv_clip: The result is clamped to +-adv_clip; math.inf turns that off.

    Returns:
        [N].

    Raises:
        ValueError: Wrong shapes, an input the rule needs is missing, or adv_clip <= 0.
    """
    if advantages.ndim != 2 or advantages.shape[1] != 2:
        raise ValueError(f"need advantages [N, 2], got {list(advantages.shape)}; reduce K > 2 with by_kind")
    if weights.shape not in {(2,), advantages.shape}:
        raise ValueError(f"weights must be [2] or {list(advantages.shape)}, got {list(weights.shape)}")
    mask = torch.ones_like(advantages[:, 0], dtype=torch.bool) if valid is None else valid
    # [2] -> [N, 2]: rules always see the weights of each row, whether rows are of one step or of several
    batch = Batch(advantages, weights.to(advantages).expand_as(advantages), mask, rewards, group_size)
    combined = rule(batch)
    if combined.shape != mask.shape:
        name = type(rule).__name__
        raise ValueError(f"rule {name} must return {list(mask.shape)}, returned {list(combined.shape)}")
    # Quality joins after the rule and before the clamp: what multiplies the ratio is bounded for every rule.
    return bounded(combined if quality is None else combined + quality, mask, adv_clip)


def bounded(advantage: Tensor, valid: Tensor, adv_clip: float) -> Tensor:
    """Return an advantage [N] as the loss uses it: 0 where not `valid` [N], and clamped to +-adv_clip.

    Raises:
        ValueError: adv_clip <= 0.
    """
    if not adv_clip > 0:
        raise ValueError(f"adv_clip must be > 0, got {adv_clip}")
    return torch.where(valid, advantage, 0.0).clamp(-adv_clip, adv_clip)


def ignores_weights(rule: Rule, group_size: int) -> bool:
    """Return whether opposite weights of the two advantages give the same result on random samples."""
    rewards = torch.rand(2 * group_size, 2, generator=torch.Generator().manual_seed(0))
    advantages = group_advantages(rewards, group_size)
    results = []
    for prompt_weight in (0.9, 0.1):
        weights = torch.tensor([prompt_weight, 1 - prompt_weight])
        results.append(combine(rule, advantages, weights, rewards=rewards, group_size=group_size))
    # To the bit: a rule without use for the weights computes the same twice.
    return torch.equal(*results)


def _masked_sum(batch: Batch, mask: Tensor, reweight: bool) -> Tensor:
    """Return the weighted sum [N] where the mask holds, scaled by the mask's share of the group if asked."""
    total = torch.where(mask, batch.weighted_sum(), 0.0)
    return total * batch.group_mean(mask.to(total)) if reweight else total


def _inverse_softplus(positive: Tensor) -> Tensor:
    # log(exp(y) - 1) without overflow for large y.
    return positive + torch.log(-torch.expm1(-positive))
