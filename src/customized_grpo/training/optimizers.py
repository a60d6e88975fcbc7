"""The optimizer of a recipe: torch's AdamW, or that of bitsandbytes with moments of 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from customized_grpo.errors import UserError
from customized_grpo.libraries import quiet

if TYPE_CHECKING:
    from customized_grpo.config.training import TrainConfig

DEVICES = ("cpu", "cuda")
"""Kinds of devices for which bitsandbytes has the steps of an optimizer."""


def check_optimizer(train: TrainConfig, device: torch.device) -> None:
    """Refuse, before anything is loaded, an optimizer that is not possible here.

    Raises:
        UserError: The library is missing or broken, or does not support the device.
    """
    if train.optimizer == "adamw":
        return
    if device.type not in DEVICES:
        raise UserError(
            f"train.optimizer={train.optimizer} works on {' and '.join(DEVICES)}, not on {device.type}",
            hint="Set train.optimizer=adamw, or another model.device.",
        )
    with quiet():
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"train.optimizer={train.optimizer} needs bitsandbytes: {error}",
                hint="Install it: pip install 'customized-grpo[quantised]'.",
            ) from error


def build_optimizer(train: TrainConfig, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer over the adapter's parameters, without the recipe's rates yet.

    AdamW of 8 bits (arXiv 2110.02861) keeps both moments in a byte each with a scale for every 256 of them;
    parameters of fewer than 4,096 entries keep theirs in fp32.

    Args:
        train: The recipe's section, for which `check_optimizer` has passed.
        parameters: Of the adapter, fp32.
    """
    if train.optimizer == "adamw":
        return torch.optim.AdamW(parameters)
    with quiet():
        import bitsandbytes
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(list(parameters))
    return optimizer
