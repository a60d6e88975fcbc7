"""Latent pixels as tokens: each 2x2 square of a latent image is one, in every family."""

from __future__ import annotations

from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of tokens of an image."""

PATCH = 2
"""Side of a token, in latent pixels."""


def pack(latents: Tensor) -> Tensor:
    """Make a token of each 2x2 square: [B, c, 2 rows, 2 columns] -> [B, rows * columns, 4 c]."""
    n_samples, channels, height, width = latents.shape
    squares = latents.reshape(n_samples, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, grid: Grid) -> Tensor:
    """Undo `pack`: [B, rows * columns, 4 c] -> [B, c, 2 rows, 2 columns]."""
    squares = tokens.unflatten(2, (-1, PATCH, PATCH)).unflatten(1, grid)
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
