"""Attention's backward pass in fp32: nearer to the exact gradient, inside the block alone, on a CPU alone."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from customized_grpo.engine.attention import attention_gradients_in_fp32
from customized_grpo.errors import UserError

CPU = torch.device("cpu")
SHAPE = (3, 4, 50, 64)  # samples, heads, tokens, channels


def gradients(dtype: torch.dtype, *, in_fp32: bool, masked: bool = False) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    parts = [torch.randn(SHAPE, generator=random).bfloat16().to(dtype).requires_grad_() for _ in range(3)]
    mask = torch.randn(50, 50, generator=random).bfloat16().to(dtype) if masked else None
    direction = torch.randn(SHAPE, generator=random).bfloat16().to(dtype)
    out = scaled_dot_product_attention(*parts, attn_mask=mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with attention_gradients_in_fp32(CPU, in_fp32):
            out.backward(direction)
    return [part.grad for part in parts if part.grad is not None]


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    return max(float((one - other).norm() / other.norm()) for one, other in zip(found, exact, strict=True))


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_bf16_are_those_of_fp32_rounded_once(masked: bool) -> None:
    exact = gradients(torch.float64, in_fp32=False, masked=masked)
    native = gradients(torch.bfloat16, in_fp32=False, masked=masked)
    wide = gradients(torch.bfloat16, in_fp32=True, masked=masked)
    assert [gradient.dtype for gradient in wide] == [torch.bfloat16] * 3
    assert error(wide, exact) < 0.9 * error(native, exact) < 0.01


def test_outside_the_block_and_unasked_nothing_changes() -> None:
    before = gradients(torch.bfloat16, in_fp32=False)
    wide = gradients(torch.bfloat16, in_fp32=True)
    assert not all(map(torch.equal, before, wide))
    assert all(map(torch.equal, before, gradients(torch.bfloat16, in_fp32=False)))
    assert all(map(torch.equal, wide, gradients(torch.bfloat16, in_fp32=True)))


def test_fp32_itself_keeps_every_bit() -> None:
    own = gradients(torch.float32, in_fp32=False)
    assert all(map(torch.equal, own, gradients(torch.float32, in_fp32=True)))


def test_another_device_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.library, "get_kernel")
    with attention_gradients_in_fp32(torch.device("cuda"), True):
        pass
    with pytest.raises(UserError, match="is too old for it"), attention_gradients_in_fp32(CPU, True):
        pass
