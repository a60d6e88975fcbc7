"""Backward passes on CUDA that add up in one order, so that the same inputs give the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

from customized_grpo.errors import UserError

REFUSAL = "does not have a deterministic implementation"
"""Words of torch's error about an operation that cannot add up in one order."""


@contextmanager
def repeatable(device: torch.device, enabled: bool) -> Iterator[None]:
    """Have kernels of CUDA repeat bit for bit inside the block; other devices are left alone.

    torch's softer mode, `warn_only`, would not do: attention then only warns and keeps its usual backward
    pass (aten/src/ATen/native/transformers/cuda/attention_backward.cu). Forward passes repeat anyway, so the
    block should hold the update and no more. cuBLAS needs CUBLAS_WORKSPACE_CONFIG, see `prepare_cuda`.

    Args:
        device: Where the work is done.
        enabled: Whether the recipe asks for it.

    Raises:
        UserError: An operation has no kernel of that kind.
    """
    if not enabled or device.type != "cuda":
        yield
        return
    memory: Any = torch.utils.deterministic  # its attribute is made at run time
    before = torch.are_deterministic_algorithms_enabled()
    fills = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # a guard against bugs, and slow
    try:
        yield
    except RuntimeError as error:
        if REFUSAL not in str(error):
            raise
        raise UserError(
            f"run.deterministic: {str(error).partition('.')[0].strip()}", hint="Set run.deterministic=false."
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fills
