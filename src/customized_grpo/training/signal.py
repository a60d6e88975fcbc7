"""The learning signal of an iteration: advantages per kind of reward, kept apart until the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from customized_grpo.algorithms import advantages as adv
from customized_grpo.algorithms import schedules
from customized_grpo.seeding import derive_seed

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.config.schema import AdvantageConfig
    from customized_grpo.rewards.base import HasKind


@dataclass(frozen=True)
class LearningSignal:
    """What the rewards say about N samples, not yet combined.

    Attributes:
        advantages: [N, 2], (prompt, identity), each normalised in its group.
        rewards: Raw rewards [N, 2], likewise by kind.
        valid: [N], False where a reward is missing.
        weights: Prompt weight of every denoising step [T].
    """

    advantages: Tensor
    rewards: Tensor
    valid: Tensor
    weights: Tensor

    @classmethod
    def of(cls, config: Config, rewards: Sequence[HasKind], scores: Tensor, iteration: int) -> LearningSignal:
        """Normalise every reward in its group and reduce the rewards to kinds.

        Args:
            config: The recipe.
            rewards: K rewards, in the recipe's order.
            scores: Of N samples in whole groups [N, K], NaN where a reward could not score.
            iteration: Of training; a shuffled schedule is another one in each.
        """
        group_size = config.train.group_size
        judged = [k for k, reward in enumerate(rewards) if reward.kind in adv.KINDS]
        kinds = [rewards[k].kind for k in judged]
        shares = [config.rewards[k].weight for k in judged]
        options: dict[str, Any] = dict(config.schedule.options())
        if config.schedule.name == "shuffled_tdw":
            options["seed"] = derive_seed(config.run.seed, "shuffled", iteration) % 2**31
        return cls(
            advantages=adv.by_kind(adv.group_advantages(scores[:, judged], group_size), kinds, shares),
            rewards=adv.by_kind(scores[:, judged], kinds, shares),
            valid=adv.valid_samples(scores[:, judged], group_size),
            weights=schedules.prompt_weights(config.schedule.name, config.rollout.steps, **options),
        )

    def rows(self, rows: slice) -> LearningSignal:
        """Return the samples `rows`."""
        return LearningSignal(self.advantages[rows], self.rewards[rows], self.valid[rows], self.weights)

    def combined(self, step: int, group_size: int, config: AdvantageConfig) -> Tensor:
        """Return the advantages [N] of one true step: the only place where the two become one."""
        prompt_weight = self.weights[step]
        return adv.combine(
            config.name,
            self.advantages,
            torch.stack([prompt_weight, 1 - prompt_weight]),
            rewards=self.rewards,
            group_size=group_size,
            valid=self.valid,
            adv_clip=config.clip,
            **config.options(),
        )
