"""Device, backward pass and gradient clipping, through accelerate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator

from customized_grpo.errors import UserError


class Engine:
    """What the trainer needs from the hardware.

    Precision is not accelerate's business here: the policy owns the one autocast context of both phases.

    Args:
        device: Where the policy runs.

    Raises:
        UserError: More than one process was launched.
    """

    def __init__(self, device: torch.device) -> None:
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
        if self.accelerator.num_processes > 1:
            raise UserError(
                f"{self.accelerator.num_processes} processes were launched; this version trains in one",
                "Start `cgrpo train` without torchrun or accelerate launch.",
            )

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss."""
        self.accelerator.backward(loss)

    def clip_grad_norm(self, parameters: Sequence[torch.nn.Parameter], largest: float) -> float:
        """Scale gradients down to an L2 norm of `largest`; returns the norm before."""
        norm = self.accelerator.clip_grad_norm_(parameters, largest)
        assert norm is not None
        return float(norm)
