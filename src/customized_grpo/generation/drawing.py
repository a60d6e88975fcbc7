"""Drawing: what training's evaluation does, for any generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from customized_grpo.rollout import sample
from customized_grpo.seeding import generator as seeded

if TYPE_CHECKING:
    from customized_grpo.data.examples import Example
    from customized_grpo.generation.opening import Generator


@torch.no_grad()
def draw(generator: Generator, rows: Sequence[Example], seed: int, count: int = 1) -> Iterator[Tensor]:
    """Draw `count` pictures of every row, as training's evaluation draws them.

    A picture's noise depends on (seed, id of its row, its number) alone, and is that of the evaluation: a
    run's held-out rows with the seed of its recipe give the evaluation's own pictures.

    Args:
        generator: From `open_generator`.
        rows: Prompts with their references, which are taken at the size they come in.
        seed: Of the noise.
        count: Pictures of each row.

    Yields:
        Pictures [3, H, W] in [0, 1], on the CPU: all of the first row, then of the second, ...
    """
    sigmas = generator.sigmas()
    for part in _batches([(row, number) for row in rows for number in range(count)], generator.batch_size):
        chosen = [row for row, _ in part]
        conditioning = generator.policy.encode(
            [row.prompt for row in chosen], [row.references for row in chosen], *generator.size
        )
        noise = [seeded(seed, "held-out", row.id, number) for row, number in part]
        yield from sample(generator.policy, conditioning, noise, sigmas, len(part)).cpu()


def _batches(
    pictures: Sequence[tuple[Example, int]], batch_size: int
) -> Iterator[Sequence[tuple[Example, int]]]:
    """Cut into batches of at most `batch_size` whose rows have references of the same sizes."""
    batch: list[tuple[Example, int]] = []
    for picture in pictures:
        if batch and (len(batch) == batch_size or _bucket(picture[0]) != _bucket(batch[0][0])):
            yield batch
            batch = []
        batch.append(picture)
    if batch:
        yield batch


def _bucket(row: Example) -> list[tuple[int, ...]]:
    return [tuple(reference.shape) for reference in row.references]
