"""The learning signal of an iteration: advantages per kind of reward, kept apart until the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from customized_grpo.algorithms import advantages as adv
from customized_grpo.algorithms.rules import Rule, combine
from customized_grpo.algorithms.schedules import Schedule, prompt_weights
from customized_grpo.seeding import derive_seed

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.rewards.base import HasKind


@dataclass(frozen=True)
class LearningSignal:
    """Rewards and advantages of N samples, by kind and not yet combined.

    Attributes:
        advantages: [N, 2], order (prompt, identity), each normalised in its group.
        rewards: Raw rewards [N, 2], same order.
        valid: [N], False where a reward is missing.
        weights: Prompt weight of every denoising step [T].
    """

    advantages: Tensor
    rewards: Tensor
    valid: Tensor
    weights: Tensor

    @classmethod
    def from_scores(
        cls, config: Config, rewards: Sequence[HasKind], scores: Tensor, iteration: int
    ) -> LearningSignal:
        """Normalise every reward in its group and reduce the rewards to kinds.

        Args:
            config: The recipe.
            rewards: K rewards, in the recipe's order.
            scores: Of N samples in whole groups [N, K], NaN where a reward could not score.
            iteration: Of training; a schedule that draws its weights draws others in each.
        """
        group_size = config.train.group_size
        judged = [k for k, reward in enumerate(rewards) if reward.kind in adv.KINDS]
        kinds = [rewards[k].kind for k in judged]
        shares = [config.rewards[k].weight for k in judged]
        schedule: Schedule = config.schedule.build()
        seed = derive_seed(config.run.seed, "shuffled", iteration) % 2**31
        return cls(
            advantages=adv.by_kind(adv.group_advantages(scores[:, judged], group_size), kinds, shares),
            rewards=adv.by_kind(scores[:, judged], kinds, shares),
            valid=adv.valid_samples(scores[:, judged], group_size),
            weights=prompt_weights(schedule, config.rollout.steps, seed),
        )

    def rows(self, rows: slice) -> LearningSignal:
        """Return the samples `rows`."""
        return LearningSignal(self.advantages[rows], self.rewards[rows], self.valid[rows], self.weights)

    def combined(self, step: int, rule: Rule, group_size: int, clip: float) -> Tensor:
        """Return the advantages [N] of one true step: the only place where the two become one.

        Args:
            step: True index of the denoising step, 0 the noisiest.
            rule: What combines them.
            group_size: G.
            clip: Bound on the magnitude of the result.
        """
        prompt_weight = self.weights[step]
        return combine(
            rule,
            self.advantages,
            torch.stack([prompt_weight, 1 - prompt_weight]),
            rewards=self.rewards,
            group_size=group_size,
            valid=self.valid,
            adv_clip=clip,
        )
