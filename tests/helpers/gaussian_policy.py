"""A policy whose samples are a linear Gaussian process, so that the variance still open is known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from customized_grpo.algorithms.samplers import SAMPLERS
from customized_grpo.data.examples import Example
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rollout.sampler import Sampler

SIGMAS = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
ETA = 0.7
EARLY = 2.0
"""Rate of channel 0: v = EARLY x shrinks x, so that noise of early steps matters less."""


class GaussianPolicy:
    """A policy with velocity EARLY x in channel 0, which shrinks or grows it, and 0 in channels 1 and 2.

    Channels 0 and 1 are the red and the green of an image of one colour, around a medium grey.

    Attributes:
        calls: (sigma, samples) of each call of `velocity`.
    """

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.calls: list[tuple[float, int]] = []

    def encoding(self) -> AbstractContextManager[None]:
        return nullcontext()

    def encode(self, prompts: Sequence[str], references: Any, height: int, width: int) -> Conditioning:
        return Conditioning({"nothing": torch.zeros(len(prompts))}, {}, height, width)

    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return torch.stack([torch.randn(1, 3, generator=generator) for generator in generators])

    def velocity(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        assert len(x) == len(conditioning)
        self.calls.append((round(sigma, 6), len(x)))
        return x * torch.tensor([EARLY, 0.0, 0.0])

    def decode(self, x: Tensor, height: int, width: int) -> Tensor:
        return (0.5 + 0.05 * x[:, 0, :, None, None]).expand(-1, -1, 2, 2)


def sampler() -> Sampler:
    return Sampler(SAMPLERS["dance"], ETA, SIGMAS)


def open_variance(rate: float, noisy: Sequence[int]) -> list[float]:
    """Var(x_T | x_i) of a channel with velocity rate x, after i = 0 to T steps.

    A step is x' = a x + b z with b = eta sqrt(D) and, as Dance's drift is (eta^2 / 2)(D / s)(x + (1 - s) v),
    a = 1 - D rate - (eta^2 / 2)(D / s)(1 + (1 - s) rate); a step without noise has eta = 0.
    """
    sigmas = SIGMAS.double().tolist()
    variance = 0.0
    variances = [variance]
    gain = 1.0  # square of the product of a over the later steps
    for step in reversed(range(len(sigmas) - 1)):
        delta = sigmas[step] - sigmas[step + 1]
        eta = ETA if step in noisy else 0.0
        variance += gain * eta**2 * delta
        variances.append(variance)
        a = 1 - delta * rate - eta**2 / 2 * delta / sigmas[step] * (1 + (1 - sigmas[step]) * rate)
        gain *= a**2
    return variances[::-1]


def prompts(count: int) -> list[Example]:
    return [Example(f"row-{number}", f"prompt {number}", (), None, None, "one") for number in range(count)]


def red(batch: ScoringBatch) -> Tensor:
    return batch.images[:, 0].mean((1, 2))


def green(batch: ScoringBatch) -> Tensor:
    return batch.images[:, 1].mean((1, 2))


class ColourJudges:
    """Judges in units of the latents: prompt is channel 0, identity channel 1."""

    def columns(self, images: Tensor, examples: Sequence[Example]) -> dict[str, Tensor]:
        latents = (images.mean((2, 3)) - 0.5) / 0.05
        return {
            "judge/prompt": latents[:, 0],
            "judge/identity": latents[:, 1],
            "monitor/copy_score": latents[:, 2],
        }
