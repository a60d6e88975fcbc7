"""Rows of several manifests in one training, each manifest with its share of the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from customized_grpo.data.examples import Example, ExampleSource, ManifestSource
from customized_grpo.data.sampler import prompt_indices, row_of_pass
from customized_grpo.seeding import generator

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, are spread evenly at every length."""


@dataclass(frozen=True)
class MixedPart:
    """One manifest of several.

    Attributes:
        source: Its rows.
        weight: Its share of the prompts, relative to the weights of the others.
        rewards: Names of the rewards that score rows which name none themselves; None: all.
    """

    source: ManifestSource
    weight: float
    rewards: tuple[str, ...] | None = None


class Mixture:
    """The rows of several manifests: those of the first, then those of the second, ...

    Args:
        parts: At least one; weights are positive.
    """

    def __init__(self, parts: Sequence[MixedPart]) -> None:
        self.parts = tuple(parts)
        counts = [len(part.source) for part in self.parts]
        self._starts = [sum(counts[:number]) for number in range(len(counts))]

    def __len__(self) -> int:
        return sum(len(part.source) for part in self.parts)

    def __getitem__(self, index: int) -> Example:
        """Open the images of row `index`."""
        # row of the mixture -> manifest, and below: row of that manifest
        number = max(place for place, start in enumerate(self._starts) if start <= index)
        part = self.parts[number]
        example = part.source[index - self._starts[number]]
        # A row's own choice is more special than its manifest's.
        if part.rewards is None or "rewards" in example.meta:
            return example
        return replace(example, meta={**example.meta, "rewards": list(part.rewards)})

    def texts(self) -> list[tuple[str, str]]:
        """Return (id, prompt) of all rows, without a look at their files."""
        texts: list[tuple[str, str]] = []
        for part in self.parts:
            texts += part.source.texts()
        return texts

    def draw(self, first: int, n_prompts: int, seed: int) -> list[int]:
        """Return the rows of consecutive prompts, as `sampler.prompt_indices` does for one manifest.

        Over any stretch of a training a manifest has its share of the prompts, to within a few. Its own rows
        are visited in shuffled passes.
        """
        part_of_prompt = self._parts_of_prompts(first + n_prompts, seed)
        rows = []
        for position in range(first, first + n_prompts):
            number = int(part_of_prompt[position])
            # how often the manifest was drawn from before, in the whole training
            visit = int((part_of_prompt[:position] == number).sum())
            count = len(self.parts[number].source)
            # row of the manifest -> row of the mixture
            rows.append(self._starts[number] + row_of_pass(count, visit, seed, number))
        return rows

    def _parts_of_prompts(self, count: int, seed: int) -> NDArray[np.int64]:
        """Return the number of the manifest of each of the first `count` prompts of a training."""
        import torch

        weights = np.array([part.weight for part in self.parts])
        bounds = np.cumsum(weights / weights.sum())
        # One draw for the whole training, so that any iteration can be worked out alone.
        start = float(torch.rand(1, generator=generator(seed, "mixture"), dtype=torch.float64))
        points = (start + GOLDEN * np.arange(count)) % 1.0
        # the last bound may be rounded to less than 1
        return np.searchsorted(bounds[:-1], points, side="right").astype(np.int64)


def draw_rows(source: ExampleSource, first: int, n_prompts: int, seed: int) -> list[int]:
    """Return the rows of consecutive prompts of a training: a pure function of its arguments.

    Args:
        source: The rows to train on.
        first: Number of prompts that were drawn before.
        n_prompts: Number of prompts to draw.
        seed: The run's seed.
    """
    if isinstance(source, Mixture):
        return source.draw(first, n_prompts, seed)
    return prompt_indices(len(source), first, n_prompts, seed)
