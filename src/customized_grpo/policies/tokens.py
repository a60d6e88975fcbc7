"""Latent pixels as tokens: each square of a latent image is one; how long its side is, the family says."""

from __future__ import annotations

from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of tokens of an image."""

PATCH = 2
"""Side of a token, in latent pixels, of most families; see `PolicySizes.PATCH`."""


def pack(latents: Tensor, patch: int = PATCH) -> Tensor:
    """Make a token of each p x p square: [B, c, p rows, p columns] -> [B, rows * columns, p p c]."""
    n_samples, channels, height, width = latents.shape
    squares = latents.reshape(n_samples, channels, height // patch, patch, width // patch, patch)
    # [B, c, rows, p, columns, p] -> [B, rows, columns, c, p, p]: a token has its channels outermost.
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, grid: Grid, patch: int = PATCH) -> Tensor:
    """Undo `pack`: [B, rows * columns, p p c] -> [B, c, p rows, p columns]."""
    squares = tokens.unflatten(2, (-1, patch, patch)).unflatten(1, grid)
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
