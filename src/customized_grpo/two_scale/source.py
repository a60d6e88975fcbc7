"""The world of two scales as training and held-out rows, which share no toy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch

from customized_grpo.data.examples import Example
from customized_grpo.two_scale import world

HELD_OUT_SHARE = 4
"""One of this many toys is held out."""


def rows(*, held_out: bool) -> list[Example]:
    """Return all rows of a split: each of its toys, prompted into every scene but its reference's.

    A toy is a pattern and the scene of its reference. 42 toys are trained on and 14 held out; the latter have
    every pattern and every scene, in pairs that the others do not have.
    """
    return [
        _row(prompted, photographed, pattern)
        # patterns from 1: no reference shows the plain one, see `world.PLAIN`
        for pattern, photographed, prompted in product(
            range(1, len(world.PATTERNS)), range(len(world.SCENES)), range(len(world.SCENES))
        )
        if prompted != photographed and is_held_out(photographed, pattern) == held_out
    ]


def is_held_out(photographed: int, pattern: int) -> bool:
    """Return whether the toy with this pattern, photographed in this scene, is held out."""
    # along diagonals, so that every pattern and every scene is on both sides
    return (photographed + pattern) % HELD_OUT_SHARE == 0


def _row(prompted: int, photographed: int, pattern: int) -> Example:
    reference, target = _images([photographed, prompted], pattern)
    toy = f"{world.PATTERNS[pattern]}-{world.SCENES[photographed]}"
    return Example(
        id=f"{toy}-{world.SCENES[prompted]}",
        prompt=world.prompt(prompted),
        references=(reference,),
        masks=None,
        target=target,
        subject=toy,
        meta={"prompted": prompted, "photographed": photographed, "pattern": pattern},
    )


def _images(scenes: Sequence[int], pattern: int) -> torch.Tensor:
    pixels = world.latents(torch.tensor(scenes), torch.tensor([pattern] * len(scenes)))
    return world.enlarge(pixels) / 2 + 0.5
