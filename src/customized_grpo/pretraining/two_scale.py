"""The base of the world of two scales, by flow matching on pairs that are about as often wrong as right.

    python -m customized_grpo.pretraining.two_scale FOLDER

writes the weights that ship as `two_scale/assets`, in two minutes of one core. Only toys of the training rows
are used. Of the targets, a share SCENE_RIGHT shows the prompted scene and the others the reference's;
independently, a share PATTERN_RIGHT shows the toy's pattern and the others the plain one.
"""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from customized_grpo.policies.tokens import pack
from customized_grpo.seeding import generator
from customized_grpo.two_scale import world
from customized_grpo.two_scale.model import TwoScaleModel
from customized_grpo.two_scale.source import rows

SCENE_RIGHT = 0.6
PATTERN_RIGHT = 0.55
JITTER = 0.1
"""Standard deviation of the targets around their codes, relative to the amplitude."""

STEPS, BATCH = 6000, 256
PEAK_RATE, WARMUP = 2e-3, 200
AVERAGE_DECAY = 0.998
PATTERN_LOSS = 4.0
"""Weight of the pattern's errors, which are small because its amplitude is."""


class Pairs:
    """Random training pairs of the world.

    Args:
        seed: Seed of the draws.
    """

    def __init__(self, seed: int) -> None:
        metas = [tuple(row.meta.values()) for row in rows(held_out=False)]
        self.rows = torch.tensor(metas)  # [rows, (prompted, photographed, pattern)]
        self.generator = generator(seed, "two-scale pairs")

    def uniform(self, n: int) -> Tensor:
        """Return numbers [n] in [0, 1)."""
        return torch.rand(n, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        """Return normal numbers."""
        return torch.randn(shape, generator=self.generator)

    def draw(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return targets and references as tokens [n, 4, 12], and prompted scenes [n]."""
        places = torch.randint(len(self.rows), (n,), generator=self.generator)
        prompted, photographed, pattern = self.rows[places].unbind(1)
        scene = torch.where(self.uniform(n) < SCENE_RIGHT, prompted, photographed)
        shown = torch.where(self.uniform(n) < PATTERN_RIGHT, pattern, world.PLAIN)
        targets = world.latents(scene, shown)
        targets = targets + JITTER * world.AMPLITUDES * self.normal(*targets.shape)
        return pack(targets), pack(world.latents(photographed, pattern)), prompted


def train(steps: int = STEPS, seed: int = 0) -> TwoScaleModel:
    """Return the moving average of a model trained on random pairs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TwoScaleModel()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_RATE)
    pairs = Pairs(seed)
    # the upper two tokens are the scene
    weights = torch.tensor([1.0, 1.0, PATTERN_LOSS, PATTERN_LOSS])[:, None]
    for step in range(steps):
        rate = PEAK_RATE * min(1, step / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        clean, reference, scene = pairs.draw(BATCH)
        noise = pairs.normal(*clean.shape)
        level = pairs.uniform(BATCH)
        x = torch.lerp(clean, noise, level[:, None, None])
        (velocity,) = model(x, level, reference, scene)
        loss = (weights * (velocity - (noise - clean)).square()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(AVERAGE_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)
    return average


def main(folder: Path) -> None:
    """Train the base and write its weights in bf16."""
    torch.set_num_threads(1)  # the tensors are too small to share
    train().to(torch.bfloat16).save_pretrained(folder / "transformer")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
