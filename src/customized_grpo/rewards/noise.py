"""A reward made unreliable on purpose, to study training with a weak judge."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from customized_grpo.pixels import to_uint8
from customized_grpo.rewards.base import Reward, ScoringBatch, checked_scores, is_groupwise, needs_references
from customized_grpo.rewards.features import content_key
from customized_grpo.seeding import generator


class NoisyReward:
    """Another reward plus Gaussian noise that depends on image and prompt alone.

    A judge that errs does so again on the same image: asked twice it gives the same score, so runs stay
    exactly repeatable. Between images, however alike, its errors are independent.

    Args:
        reward: The reward.
        std: Standard deviation of the noise, in the reward's own units, above 0.
    """

    kind: Literal["identity", "prompt", "quality"]

    def __init__(self, reward: Reward, std: float) -> None:
        self.reward = reward
        self.std = std
        self.name = reward.name
        self.kind = reward.kind
        self.groupwise = is_groupwise(reward)
        self.needs_references = needs_references(reward)

    def score(self, batch: ScoringBatch) -> Tensor:
        """Return noisy scores [B], fp32, on the CPU; NaN where the reward itself could not score."""
        noise = [
            self._error(image, prompt) for image, prompt in zip(batch.images, batch.prompts, strict=True)
        ]
        return checked_scores(self.reward, batch) + self.std * torch.cat(noise)

    def fingerprint(self) -> dict[str, Any]:
        """Return the reward's own fingerprint and the noise."""
        return {**self.reward.fingerprint(), "noise": self.std}

    def _error(self, image: Tensor, prompt: str) -> Tensor:
        # Of the 8 bits that every executor sees, so that the noise is the same everywhere.
        image_hash = content_key(to_uint8(image)).hex()
        # Seed 0 and not the run's: the noise is part of the reward, and two runs have the same judge.
        return torch.randn(1, generator=generator(0, "reward noise", self.name, prompt, image_hash))
