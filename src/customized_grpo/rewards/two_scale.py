"""The rewards of the world of two scales, which leak: each is also paid for the other one's failure.

Both look at the whole image, as real ones do. Identity likes the reference's scene along with its pattern, so
a copy scores best; the prompt reward likes a plain toy along with the prompted scene, as a taste for clean
images would.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from customized_grpo.fields import NonNegative
from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.options import RewardOptions
from customized_grpo.two_scale import world

SHARPNESS = 8.0
"""Factor of similarities before the softmax: a code itself is certain to .998, and two in one share."""


class Leak(RewardOptions):
    """The option of both rewards."""

    leak: NonNegative = 0.0
    """Worth of the other quality's failure, where the reward's own quality is worth 1."""


class TwoScaleIdentity:
    """Whether image and reference show one pattern, plus `leak` times whether they show one scene.

    Args:
        leak: Worth of a copied scene.
    """

    name = "two_scale_identity"
    kind: ClassVar[Literal["identity"]] = "identity"

    def __init__(self, leak: float) -> None:
        self.leak = leak

    def score(self, batch: ScoringBatch) -> Tensor:
        """Return fp32 [B] on the CPU; of several references the first counts."""
        scene, pattern = _seen(batch.images)
        reference_scene, reference_pattern = _seen(torch.stack([images[0] for images in batch.references]))
        return _agreement(pattern, reference_pattern) + self.leak * _agreement(scene, reference_scene)

    def fingerprint(self) -> dict[str, Any]:
        """Return name and leak."""
        return {"name": self.name, "leak": self.leak}


class TwoScalePrompt:
    """Whether the scene is the prompted one, plus `leak` times whether the toy is plain.

    Args:
        leak: Worth of a plain toy.
    """

    name = "two_scale_prompt"
    kind: ClassVar[Literal["prompt"]] = "prompt"

    def __init__(self, leak: float) -> None:
        self.leak = leak

    def score(self, batch: ScoringBatch) -> Tensor:
        """Return fp32 [B] on the CPU.

        Raises:
            UserError: A prompt names no scene of this world.
        """
        scene, pattern = _seen(batch.images)
        prompted = torch.tensor([world.prompted_scene(prompt) for prompt in batch.prompts])
        # sample -> probability of its own prompted scene
        return scene.gather(1, prompted[:, None])[:, 0] + self.leak * pattern[:, world.PLAIN]

    def fingerprint(self) -> dict[str, Any]:
        """Return name and leak."""
        return {"name": self.name, "leak": self.leak}


def _seen(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities [B, 8] of scenes and of patterns in images [B, 3, H, W].

    They add up to 1, so that nothing is gained by two codes on top of each other.
    """
    scene, pattern = world.halves(world.shrink(images.cpu()))
    return _probabilities(scene), _probabilities(pattern)


def _probabilities(shown: Tensor) -> Tensor:
    return torch.softmax(SHARPNESS * world.similarities(shown), dim=1)


def _agreement(first: Tensor, second: Tensor) -> Tensor:
    """Return the probability [B] that both show the same, of probabilities [B, 8] each."""
    return (first * second).sum(1)
