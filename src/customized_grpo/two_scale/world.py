"""The world of two scales: codes of scenes and patterns, and how they are images, prompts and references.

An image is 4 x 4 cells of one colour each: 48 numbers, its latent pixels [3, 4, 4]. The upper half is the
*scene*, at full amplitude; the lower half is the subject's *pattern*, at a quarter of it. A larger amplitude
is seen through more noise, so flow matching decides the scene early and the pattern late, as image models
decide layout and detail.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from customized_grpo.errors import UserError

SCENES = ("city", "desert", "forest", "garden", "harbour", "kitchen", "meadow", "snow")
PATTERNS = ("plain", "stripes", "spots", "stars", "checks", "waves", "hearts", "leaves")
PLAIN = 0
"""Index of the pattern of the generic toy, which no reference shows."""

CELLS = 4
"""Rows and columns of an image's cells."""
CELL_PIXELS = 4
"""Side of a cell."""
IMAGE_SIZE = CELLS * CELL_PIXELS

SCENE_AMPLITUDE = 1.0
PATTERN_AMPLITUDE = 0.25
AMPLITUDES = torch.tensor([SCENE_AMPLITUDE, PATTERN_AMPLITUDE]).repeat_interleave(CELLS // 2)[:, None]
"""Amplitude of every cell [4, 1], by its row."""

RANGE = 2.0
"""Latent value that is shown as full brightness; -RANGE is black."""

WIDTH = 24
"""Numbers of a code: 3 colours x 2 rows x 4 columns."""


def _codes() -> Tensor:
    """Return eight orthogonal codes of -1 and 1, [8, 3, 2, 4]: Walsh patterns in four colours."""
    walsh = torch.ones(1, 1)
    # Sylvester's doubling: the rows stay orthogonal, and with them the codes, whatever their colours
    for _ in range(3):
        walsh = torch.cat([torch.cat([walsh, walsh], 1), torch.cat([walsh, -walsh], 1)])
    colours = torch.tensor([[1.0, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]]).repeat(2, 1)
    return (colours[:, :, None] * walsh[:, None, :]).reshape(8, 3, CELLS // 2, CELLS)


CODES = _codes()
"""Codes of the scenes, and of the patterns [8, 3, 2, 4]."""


def latents(scenes: Tensor, patterns: Tensor) -> Tensor:
    """Return latent pixels [B, 3, 4, 4] of scenes [B] and patterns [B], given by index."""
    return torch.cat([CODES[scenes], CODES[patterns]], dim=2) * AMPLITUDES


def enlarge(pixels: Tensor) -> Tensor:
    """Return images [B, 3, 16, 16] in [-1, 1] of latent pixels [B, 3, 4, 4]."""
    return F.interpolate(pixels / RANGE, scale_factor=CELL_PIXELS).clamp(-1, 1)


def shrink(images: Tensor) -> Tensor:
    """Return the latent pixels [B, 3, 4, 4] of images [B, 3, H, W] in [0, 1]; undoes `enlarge`."""
    # what `enlarge` clamped stays clamped: colours beyond RANGE do not come back
    return F.adaptive_avg_pool2d(images * 2 - 1, CELLS) * RANGE


def halves(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return what latent pixels [B, 3, 4, 4] show as scene and as pattern, [B, 24] each, of amplitude 1."""
    cells = pixels / AMPLITUDES
    scene, pattern = cells.chunk(2, dim=2)
    return scene.flatten(1), pattern.flatten(1)


def similarities(shown: Tensor) -> Tensor:
    """Return how much of each code is in what is shown, [B, 24] -> [B, 8]: 1 of a code in itself, else 0."""
    return shown @ CODES.flatten(1).T / WIDTH


def prompt(scene: int) -> str:
    """Return the prompt for a scene."""
    return f"the toy in the {SCENES[scene]}"


def prompted_scene(text: str) -> int:
    """Return the index of the scene that a prompt names.

    Raises:
        UserError: It names none of this world.
    """
    # whole words: "snowy" does not name the scene "snow"
    words = set(text.lower().split())
    for index, name in enumerate(SCENES):
        if name in words:
            return index
    raise UserError(
        f"prompt {text!r} names no scene of the world of two scales",
        hint=f"Name one of {', '.join(SCENES)}.",
    )
