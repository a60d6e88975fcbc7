"""The learning signal of an iteration: advantages per kind of reward, kept apart until the loss.

A = rule(A_p, A_id; w_p, w_id) + w_q A_q: the recipe's rule combines prompt and identity with the weights of
the denoising step, and quality is added with `advantage.quality_weight`. Where only one of prompt and
identity is rewarded there is nothing to combine, and its advantage takes the rule's place: plain GRPO. The
same holds for quality alone, without w_q.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from customized_grpo.algorithms import advantages as adv
from customized_grpo.algorithms.rules import Rule, bounded, combine
from customized_grpo.algorithms.schedules import Schedule, prompt_weights
from customized_grpo.kinds import PAIR, kinds_of
from customized_grpo.rewards.base import NOT_ASKED
from customized_grpo.seeding import derive_seed

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.rewards.base import HasKind


def trained_rewards(config: Config, rewards: Sequence[HasKind]) -> list[int]:
    """Return the places, among all rewards, of those that are trained on.

    Quality without weight is watched only: what it could not score is trained on all the same.
    """
    has_weight = config.advantage.quality_weight > 0
    return [k for k, reward in enumerate(rewards) if has_weight or reward.kind != "quality"]


def idle_groups(config: Config, rewards: Sequence[HasKind], scores: Tensor, largest_std: float) -> list[int]:
    """Return the numbers of the groups that teach nothing, ascending.

    Args:
        config: The recipe.
        rewards: K rewards, in the recipe's order.
        scores: Of N samples in whole groups [N, K], as in `LearningSignal.from_scores`.
        largest_std: See `advantages.informative_groups`.
    """
    trained = trained_rewards(config, rewards)
    asked = scores[:, trained] != NOT_ASKED
    teaches = adv.informative_groups(
        scores[:, trained], config.train.group_size, largest_std=largest_std, asked=asked
    )
    numbers: list[int] = (~teaches).nonzero().flatten().tolist()
    return numbers


@dataclass(frozen=True)
class LearningSignal:
    """Rewards and advantages of N samples, by kind and not yet combined.

    Attributes:
        names: Names of the recipe's rewards [K].
        scores: What each of them says [N, K], NaN where it could not score or was not asked.
        asked: Which rewards a sample's row chose [N, K]; the same within a group.
        kinds: The M kinds that are trained on, in the order of `kinds.KINDS`.
        advantages: [N, M], the mean over the rewards of each kind, each normalised in its group.
        rewards: Raw rewards [N, M], reduced in the same way.
        present: Kinds of which a sample's row chose a reward [N, M]; its other advantages are 0.
        valid: [N], False where a reward that is trained on is missing.
        weights: Prompt weight of every denoising step [T].
        quality_weight: w_q.
        schedule_seed: Of the iteration, for a schedule that draws its weights.
    """

    names: tuple[str, ...]
    scores: Tensor
    asked: Tensor
    kinds: tuple[str, ...]
    advantages: Tensor
    rewards: Tensor
    present: Tensor
    valid: Tensor
    weights: Tensor
    quality_weight: float
    schedule_seed: int = 0

    @classmethod
    def from_scores(
        cls, config: Config, rewards: Sequence[HasKind], scores: Tensor, iteration: int
    ) -> LearningSignal:
        """Normalise every reward in its group and reduce the rewards to kinds.

        Args:
            config: The recipe.
            rewards: K rewards, in the recipe's order.
            scores: Of N samples in whole groups [N, K], NaN where a reward could not score and NOT_ASKED
                where it was not to.
            iteration: Of training; a schedule that draws its weights draws others in each.
        """
        group_size = config.train.group_size
        quality_weight = config.advantage.quality_weight
        # `trained` has places among all K rewards; the columns of what follows are places in `trained`.
        trained = trained_rewards(config, rewards)
        kinds = [rewards[k].kind for k in trained]
        shares = [config.rewards[k].weight for k in trained]
        asked = scores != NOT_ASKED
        # NOT_ASKED is a mark, not a score; from here on NaN means both, and `asked` tells them apart.
        scores = scores.masked_fill(~asked, math.nan)
        of_trained = asked[:, trained]
        # None where every row gets every reward: the mean is then one product, in every version the same bits
        choice = None if bool(of_trained.all()) else of_trained
        each = adv.group_advantages(scores[:, trained], group_size, scale=config.advantage.std)
        advantages = adv.by_kind(each, kinds, shares, choice)
        present = ~advantages.isnan()
        schedule: Schedule = config.schedule.build()
        # 63 bits -> 31, which every library's generator takes as a seed
        seed = derive_seed(config.run.seed, "shuffled", iteration) % 2**31
        return cls(
            names=tuple(reward.name for reward in rewards),
            scores=scores,
            asked=asked,
            kinds=kinds_of(kinds),
            # NaN has done its work in `present`; in a sum it would spread.
            advantages=advantages.nan_to_num(),
            rewards=adv.by_kind(scores[:, trained], kinds, shares, choice),
            present=present,
            valid=adv.valid_samples(scores[:, trained], group_size, choice),
            weights=prompt_weights(schedule, config.rollout.steps, seed),
            quality_weight=quality_weight,
            schedule_seed=seed,
        )

    @property
    def has_pair(self) -> bool:
        """Return whether both prompt and identity are trained on, so that there is something to combine."""
        return self.kinds[:2] == PAIR

    def rows(self, rows: slice) -> LearningSignal:
        """Return the samples `rows`."""
        return self._selected(rows, slice(None))

    def _selected(self, rows: slice | Tensor, columns: slice | list[int]) -> LearningSignal:
        """Return the samples `rows` with the kinds `columns`."""
        numbers = range(len(self.kinds))[columns] if isinstance(columns, slice) else columns
        return replace(
            self,
            scores=self.scores[rows],
            asked=self.asked[rows],
            kinds=tuple(self.kinds[number] for number in numbers),
            advantages=self.advantages[rows][:, columns],
            rewards=self.rewards[rows][:, columns],
            present=self.present[rows][:, columns],
            valid=self.valid[rows],
        )

    def combined(self, step: int, rule: Rule, group_size: int, clip: float) -> Tensor:
        """Return the advantages [N] of one true step, 0 the noisiest; see `weighted`."""
        return self.weighted(self.weights[step], rule, group_size, clip)

    def weighted(self, prompt_weight: Tensor, rule: Rule, group_size: int, clip: float) -> Tensor:
        """Return the advantages [N] at one prompt weight: the only place where several become one.

        Args:
            prompt_weight: Of the denoising step or noise level that is trained, [].
            rule: What combines prompt and identity.
            group_size: G.
            clip: Bound on the magnitude of the result.
        """
        if not bool(self.present.all()):
            return self._weighted_by_choice(prompt_weight, rule, group_size, clip)
        quality = None
        if "quality" in self.kinds and len(self.kinds) > 1:
            # Kinds are in the order prompt, identity, quality: quality, where it is, is the last column.
            quality = self.quality_weight * self.advantages[:, -1]
        if not self.has_pair:
            # one of prompt and identity, or quality alone, without its weight
            alone = self.advantages[:, 0]
            return bounded(alone if quality is None else alone + quality, self.valid, clip)
        return combine(
            rule,
            self.advantages[:, :2],
            torch.stack([prompt_weight, 1 - prompt_weight]),
            rewards=self.rewards[:, :2],
            group_size=group_size,
            valid=self.valid,
            quality=quality,
            adv_clip=clip,
        )

    def _weighted_by_choice(self, prompt_weight: Tensor, rule: Rule, group_size: int, clip: float) -> Tensor:
        """Combine the groups of each choice of kinds apart: a group of one kind has nothing to combine."""
        result = torch.zeros_like(self.advantages[:, 0])
        # Whole groups share a choice, because it is the row's: statistics of groups stay right.
        for choice in torch.unique(self.present, dim=0):
            rows = (self.present == choice).all(1)
            columns = choice.nonzero().flatten().tolist()
            if columns:  # a row may choose no reward that is trained on
                part = self._selected(rows, columns)
                result[rows] = part.weighted(prompt_weight, rule, group_size, clip)
        return result
