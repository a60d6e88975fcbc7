"""What a family computes is checked at every call, because a family may be somebody's own code."""

from __future__ import annotations

import torch
from torch import Tensor

from customized_grpo.errors import UserError


def check_velocity(family: object, velocity: object, x: Tensor, version: int) -> None:
    """Refuse what is no velocity for tokens x [B, N, C].

    Args:
        family: Whose `_velocity` it is.
        velocity: What that returned.
        x: The tokens that it was called with.
        version: How often they had been changed in place before the call, `Tensor._version`.

    Raises:
        UserError: It is no fp32 tensor of x's shape, or x was changed.
    """
    name = type(family).__name__
    is_right = isinstance(velocity, Tensor) and velocity.dtype == torch.float32 and velocity.shape == x.shape
    if not is_right:
        raise UserError(f"{name}._velocity must return {_expected(x.shape)}, returned {_described(velocity)}")
    # the sampler goes on from x, and the update starts from it again
    if x._version != version:
        raise UserError(
            f"{name}._velocity changes x, the noisy tokens, in place",
            hint="Compute a new tensor instead (x * b, not x *= b).",
        )


def check_images(family: object, images: Tensor, height: int, width: int) -> None:
    """Refuse images that have not the size that was asked for.

    Raises:
        UserError: They are not [B, 3, height, width].
    """
    expected = (len(images), 3, height, width)
    if images.shape != expected:
        name = type(family).__name__
        raise UserError(f"{name} must decode {_expected(expected)}, decoded {_described(images)}")


def _expected(shape: tuple[int, ...]) -> str:
    return f"float32 {list(shape)}"


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__
