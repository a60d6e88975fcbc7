"""Shared by the pretraining stages: images in memory, the learning-rate schedule, progress lines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from customized_grpo.pixels import to_uint8
from customized_grpo.seeding import derive_seed
from customized_grpo.toybox import world
from customized_grpo.toybox.render import render

RENDER_CHUNK = 512


def render_bytes(pairs: list[tuple[world.Subject, world.Scene]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uint8 images [B, 3, 64, 64] and subject masks [B, 1, 64, 64] of subjects in scenes."""
    images = []
    masks = []
    # in chunks, because images in fp32 are four times as large as the bytes that are kept
    for start in range(0, len(pairs), RENDER_CHUNK):
        image_chunk, mask_chunk = render(pairs[start : start + RENDER_CHUNK])
        images.append(to_uint8(torch.from_numpy(image_chunk)))
        masks.append(to_uint8(torch.from_numpy(mask_chunk)))
    return torch.cat(images), torch.cat(masks)


def cosine_with_warmup(step: int, total: int, warmup: int) -> float:
    """Return the learning-rate factor: linear warm-up, then a cosine down to 1 % of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


class Log:
    """Progress of one stage: prints the mean of every `every` steps and keeps the last for the model card.

    Args:
        stage: Name of the stage.
        out: Folder for its card.
        every: Steps between two lines.
    """

    def __init__(self, stage: str, out: Path, every: int = 100) -> None:
        self.stage = stage
        self.out = out
        self.every = every
        self.start = time.monotonic()
        self.sums: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def step(self, step: int, total: int, **values: float) -> None:
        """Record the values of one optimizer step."""
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        if (step + 1) % self.every == 0 or step + 1 == total:
            count = (step % self.every) + 1  # the last line may be the mean of fewer steps
            self.last = {key: value / count for key, value in self.sums.items()}
            self.sums = {}
            text = "  ".join(f"{key} {value:.4g}" for key, value in self.last.items())
            seconds = time.monotonic() - self.start
            print(f"[{self.stage}] {step + 1}/{total}  {seconds:.0f} s  {text}", flush=True)

    def finish(self, **facts: float | int | str) -> None:
        """Write the stage's facts beside its weights."""
        seconds = round(time.monotonic() - self.start)
        card = {"stage": self.stage, **facts, "seconds": seconds, "final": self.last}
        (self.out / f"{self.stage}.card.json").write_text(json.dumps(card, indent=2) + "\n")


def batches(count: int, batch_size: int, seed: int) -> Callable[[int], torch.Tensor]:
    """Return a pure function of the step: indices [batch_size] below `count`, drawn with replacement."""

    def draw(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed(seed, "batch", step))
        return torch.randint(count, (batch_size,), generator=generator)

    return draw
