"""Published LoRAs made part of the frozen base, such as UNO's, before an adapter is put on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from customized_grpo.policies.checkpoint_files import empty_transformer
from customized_grpo.policies.families import FAMILIES, get_family
from customized_grpo.policies.lora_file import LowRank
from customized_grpo.policies.lora_sources import read_lora
from customized_grpo.policies.other_programs import Place, no_place

if TYPE_CHECKING:
    from customized_grpo.config.schema import ModelConfig


SETTING = "model.fuse_lora"


def fuse_lora(pipe: Any, source: str, scale: float = 1.0) -> None:
    """Add a LoRA to the transformer's weights: W + scale (alpha / rank) B A.

    Every layout of `lora_names` is accepted, including UNO's own ("...processor.qkv_lora1.down.weight").

    Args:
        pipe: A diffusers pipeline; its transformer's weights change.
        source: A safetensors file, the folder of one, or "owner/name:file" of the hub.
        scale: Factor on the update.

    Raises:
        UserError: See `lora_sources.read_lora`; nothing has been changed then, except where a tensor is not
            finite.
    """
    file = read_lora(source, SETTING, pipe.transformer, _place_of(pipe))
    with torch.no_grad():
        for name, update in file.updates():
            weight = pipe.transformer.get_submodule(name).weight
            weight += _difference(update, scale, weight.dtype)


def check_fused_loras(model: ModelConfig) -> None:
    """Check the LoRAs that a recipe adds to its base, from small files and their headers alone.

    Raises:
        UserError: See `fuse_lora`.
    """
    if not model.fuse_lora:
        return
    transformer = empty_transformer(model)
    for lora in model.fuse_lora:
        # The updates themselves are read when the weights are there to be changed.
        read_lora(lora.path, SETTING, transformer, get_family(model.family).other_programs.place)


def _difference(update: LowRank, scale: float, dtype: torch.dtype) -> Tensor:
    """Return scale (alpha / rank) B A, rounded as diffusers' `fuse_lora` does: matrices, then the product."""
    down = update.down.to(dtype).float()
    up = update.up.to(dtype).float()
    return ((up @ down) * (scale * update.scale)).to(dtype)


def _place_of(pipe: Any) -> Callable[[str], Place | None]:
    """Return where the layers of a pipeline's transformer are in the original model, if that is known."""
    name = type(pipe).__name__
    for family in FAMILIES.values():
        if name in family.pipelines.values():
            return family.other_programs.place
    return no_place
