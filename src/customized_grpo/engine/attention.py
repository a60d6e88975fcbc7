"""Attention's backward pass on a CPU in fp32, where a model's own numbers are bf16."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from customized_grpo.errors import UserError

OPERATION = "_scaled_dot_product_flash_attention_for_cpu_backward"
"""The operation of torch that autograd calls for attention on a CPU."""


@contextmanager
def attention_gradients_in_fp32(device: torch.device, enabled: bool) -> Iterator[None]:
    """Have attention's backward pass on a CPU compute in fp32 inside the block; other devices are left alone.

    torch's kernel for bf16 takes four times as long as its own for fp32 with some fifty tokens, and rounds
    the probabilities. Inside the block tensors of bf16 are made fp32, go through the kernel for fp32, and
    their gradients are rounded once. The forward pass is untouched, so samples and ratios stay what they are.

    Args:
        device: Where the work is done.
        enabled: Whether the recipe asks for it.

    Raises:
        UserError: This version of torch does not tell its kernels.
    """
    if not enabled or device.type != "cpu":
        yield
        return
    library: Any = torch.library  # parts of it are newer than its types
    if not hasattr(library, "get_kernel"):
        raise UserError(
            f"train.attention_gradients=fp32: torch {torch.__version__} is too old for it",
            hint="Install torch 2.13, or set train.attention_gradients=native.",
        )
    kernel = library.get_kernel(f"aten::{OPERATION}", "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def in_fp32(
        grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, *others: Any,
        attn_mask: Tensor | None = None, scale: float | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        wide = [tensor.float() for tensor in (grad, query, key, value, out)]
        mask = attn_mask.float() if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
        gradients = kernel.call_boxed(keys, *wide, *others, attn_mask=mask, scale=scale)
        return tuple(gradient.to(query.dtype) for gradient in gradients)

    with library._scoped_library("aten", "IMPL") as override:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a kernel is replaced, which is what is meant
            override.impl(OPERATION, in_fp32, "CPU", allow_override=True)
        yield
