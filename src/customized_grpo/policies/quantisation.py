"""The frozen transformer in 4 or 8 bits, so that a large one fits one GPU.

Bits a weight, scales included, and relative error of a normally distributed weight [3072, 3072]:

* nf4: 4.13 bits, 9 %. 4-bit values at the quantiles of a normal distribution, one scale per 64 weights, the
  scales themselves in 8 bits (QLoRA, arXiv 2305.14314), by bitsandbytes.
* int8: 8.01 bits, .8 %. One scale per row of outputs, by torchao.
* fp8: 8.01 bits (e4m3), 2.6 %. One scale per row of outputs, by torchao.

Only the linear layers inside the repeated blocks are quantised, nearly all of the weights; embedders, norms,
modulation outside of the blocks and the last layer stay as they are.

The libraries quantise; the matrix product is computed here, for two reasons. Their products take another
kernel with gradients than without, or for one token than for several, and then the first ratio is not 1. And
autograd would keep torchao's dequantised weights of all layers until the backward pass: the memory that
quantisation saves. Here rollouts and training dequantise in one way, and the backward pass does it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, assert_never

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from customized_grpo.errors import UserError
from customized_grpo.libraries import quiet

Quantisation = Literal["nf4", "int8", "fp8"]

DEVICES = ("cpu", "cuda")


def check_quantisation(kind: Quantisation, device: torch.device) -> None:
    """Refuse, before anything is loaded, a quantisation that is not possible here.

    Raises:
        UserError: The library is missing or broken, or does not support the device.
    """
    library = "bitsandbytes" if kind == "nf4" else "torchao"
    if device.type not in DEVICES:
        raise UserError(
            f"model.quantisation {kind!r} works on {' and '.join(DEVICES)}, not on {device.type}",
            hint="Set model.quantisation=null, or another model.device.",
        )
    with quiet():
        try:
            __import__(library)
        except ImportError as error:
            raise UserError(
                f"model.quantisation {kind!r} needs {library}: {error}",
                hint="Install it: pip install 'customized-grpo[quantised]'.",
            ) from error


def quantise_layers(transformer: nn.Module, kind: Quantisation, device: torch.device) -> None:
    """Replace the linear layers of the transformer's blocks by quantised ones, on the device, one by one.

    Other layers stay where they are. The device never holds more than the quantised layers and one that is
    not quantised yet. Call it after a LoRA was fused and before an adapter is added.

    Args:
        transformer: A diffusers transformer, on the CPU.
        kind: Form of the weights.
        device: Where the quantised layers go.

    Raises:
        UserError: A layer has weights that are not finite, which quantisation would spread over their block.
    """
    # A list, because the loop replaces the children that the generator walks over.
    for name, parent, child, layer in list(_block_linears(transformer)):
        if not bool(layer.weight.isfinite().all()):
            raise UserError(
                f"model.quantisation: layer {name} has weights that are not finite",
                hint="The checkpoint is damaged; download it again.",
            )
        with quiet():
            parent.register_module(child, QuantisedLinear(layer, kind, device))


def block_lists(transformer: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield name and blocks of each stack of repeated blocks; FLUX.3 has a dictionary of stacks."""
    for name, child in transformer.named_children():
        if isinstance(child, nn.ModuleList):
            yield name, child
        elif isinstance(child, nn.ModuleDict):
            for key, stack in child.items():
                if isinstance(stack, nn.ModuleList):
                    yield f"{name}.{key}", stack


def _block_linears(transformer: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Linear]]:
    """Yield (name, parent, name in the parent, layer) of the linear layers in the repeated blocks."""
    for blocks_name, blocks in block_lists(transformer):
        # Blocks only: the layers outside them are few weights.
        for parent_name, parent in blocks.named_modules(prefix=blocks_name):
            for child_name, child in parent.named_children():
                if isinstance(child, nn.Linear):
                    yield f"{parent_name}.{child_name}", parent, child_name, child


class QuantisedLinear(nn.Linear):
    """A frozen linear layer with a weight of few bits; its products are those of `F.linear`.

    Args:
        layer: The layer to take weight and bias from.
        kind: Form of the weight.
        device: Where the layer goes; the weight is quantised there.
    """

    def __init__(self, layer: nn.Linear, kind: Quantisation, device: torch.device) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        if layer.bias is not None:
            self.bias = nn.Parameter(layer.bias.detach().to(device), requires_grad=False)
        weight, scale = _quantised(layer.weight.detach(), kind, device)
        self.weight = weight
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out], in autocast's type if it is on, else in that of x."""
        if torch.is_autocast_enabled(x.device.type):  # before dequantising: half the memory of fp32
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _FrozenProduct.apply(x, self.weight, self.scale, bias)


class _FrozenProduct(torch.autograd.Function):
    """x W^T + b, differentiable in x alone; it keeps only the quantised W for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        # On the context and not saved by autograd: these never change and have no gradient.
        ctx.scale = scale
        # The wide weight lives for this product alone; neither autograd nor the layer keeps it.
        return linear(x, _dequantised(weight, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        # dL/dx = dL/dy W. The weight is frozen, so it has no gradient.
        return grad @ _dequantised(ctx.weight, ctx.scale, grad.dtype), None, None, None


def _quantised(
    weight: Tensor, kind: Quantisation, device: torch.device
) -> tuple[nn.Parameter, Tensor | None]:
    """Return a weight [out, in] quantised on a device, and its scales [out, 1]; nf4 has them inside.

    Of torchao's tensors only the numbers are used: compiled blocks cannot be trained with its tensor class.
    """
    match kind:
        case "nf4":
            from bitsandbytes.nn import Params4bit

            fresh = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
            return fresh.to(device), None
        case "int8" | "fp8":
            from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

            config = Int8WeightOnlyConfig if kind == "int8" else Float8WeightOnlyConfig
            holder: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            holder.weight = nn.Parameter(weight.to(device), requires_grad=False)
            quantize_(holder, config(set_inductor_config=False))  # True would change it for the whole process
            return nn.Parameter(holder.weight.qdata, requires_grad=False), holder.weight.scale.float()
    assert_never(kind)


def _dequantised(weight: Any, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return a quantised weight as [out, in] of a dtype."""
    if scale is not None:
        # One scale for each output row, [out, 1]; in fp32, rounded once, in place: one temporary, not two.
        return weight.float().mul_(scale).to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight, weight.quant_state).to(dtype)
