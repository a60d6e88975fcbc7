"""What the pretraining stages share: pictures in memory, the learning-rate schedule, progress lines."""

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
    """Draw pictures; returns uint8 pictures [B, 3, 64, 64] and subject masks [B, 1, 64, 64]."""
    chunks = [render(pairs[i : i + RENDER_CHUNK]) for i in range(0, len(pairs), RENDER_CHUNK)]
    pictures, masks = (
        torch.cat([to_uint8(torch.from_numpy(part)) for part in parts]) for parts in zip(*chunks, strict=True)
    )
    return pictures, masks


def cosine_with_warmup(step: int, total: int, warmup: int) -> float:
    """Return the learning-rate factor: linear warm-up, then a cosine down to 1 % of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


class Log:
    """Prints a line every `every` steps and keeps the numbers for the model card."""

    def __init__(self, stage: str, out: Path, every: int = 100) -> None:
        self.stage, self.out, self.every = stage, out, every
        self.start = time.monotonic()
        self.sums: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def step(self, step: int, total: int, **values: float) -> None:
        """Record the values of one optimizer step."""
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        if (step + 1) % self.every == 0 or step + 1 == total:
            count = (step % self.every) + 1
            self.last = {key: value / count for key, value in self.sums.items()}
            self.sums = {}
            text = "  ".join(f"{key} {value:.4g}" for key, value in self.last.items())
            print(
                f"[{self.stage}] {step + 1}/{total}  {time.monotonic() - self.start:.0f} s  {text}",
                flush=True,
            )

    def finish(self, **facts: float | int | str) -> None:
        """Write the stage's facts beside its weights."""
        seconds = round(time.monotonic() - self.start)
        card = {"stage": self.stage, **facts, "seconds": seconds, "final": self.last}
        (self.out / f"{self.stage}.card.json").write_text(json.dumps(card, indent=2) + "\n")


def batches(count: int, batch_size: int, seed: int) -> Callable[[int], torch.Tensor]:
    """Return a function step -> indices [batch_size], drawn with replacement, a pure function of the step."""

    def draw(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed(seed, "batch", step))
        return torch.randint(count, (batch_size,), generator=generator)

    return draw
