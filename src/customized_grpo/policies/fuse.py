"""A published LoRA made part of the frozen base, such as UNO's, before a fresh adapter is put on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from customized_grpo.hub import download, is_hub_id
from customized_grpo.policies.checkpoint_files import empty_transformer
from customized_grpo.policies.families import FAMILIES, get_family
from customized_grpo.policies.lora_file import PEFT_FILE_NAME, LoraFile, LowRank
from customized_grpo.policies.lora_reader import read_lora_file
from customized_grpo.policies.lora_scale import PEFT_CONFIG
from customized_grpo.policies.other_programs import Place, no_place

if TYPE_CHECKING:
    from customized_grpo.config.schema import ModelConfig


def fuse_lora(pipe: Any, source: str) -> None:
    """Add a LoRA to the transformer's weights: W + (alpha / rank) B A.

    Every layout of `lora_names` is accepted, including UNO's own ("...processor.qkv_lora1.down.weight").

    Args:
        pipe: A diffusers pipeline; its transformer's weights change.
        source: A safetensors file, the folder of one, or "owner/name:file" of the hub.

    Raises:
        UserError: See `read_lora_file`; nothing has been changed then, except where a tensor turns out not to
            be finite.
    """
    file = _read(source, pipe.transformer, _place_of(pipe))
    with torch.no_grad():
        for name, update in file.updates():
            weight = pipe.transformer.get_submodule(name).weight
            weight += _difference(update, weight.dtype)


def check_fused_lora(model: ModelConfig) -> None:
    """Check the LoRA that a recipe adds to its base, from small files and its header alone.

    Raises:
        UserError: See `fuse_lora`.
    """
    if model.fuse_lora is not None:
        place = get_family(model.family).other_programs.place
        _read(model.fuse_lora, empty_transformer(model), place)


def _read(source: str, transformer: nn.Module, place: Callable[[str], Place | None]) -> LoraFile:
    return read_lora_file(_find(source), transformer, place, source=f"model.fuse_lora {source!r}")


def _difference(update: LowRank, dtype: torch.dtype) -> Tensor:
    """Return (alpha / rank) B A, rounded as diffusers' `fuse_lora` does: matrices first, then the product."""
    down = update.down.to(dtype).float()
    up = update.up.to(dtype).float()
    return ((up @ down) * update.scale).to(dtype)


def _place_of(pipe: Any) -> Callable[[str], Place | None]:
    """Return where the layers of a pipeline's transformer are in the original model, if that is known."""
    name = type(pipe).__name__
    for family in FAMILIES.values():
        if name in family.pipelines.values():
            return family.other_programs.place
    return no_place


def _find(source: str) -> Path:
    """Return the local file or folder, fetched from the hub if need be."""
    path = Path(source).expanduser()
    repository, colon, name = source.partition(":")
    if path.exists() or not colon or not is_hub_id(repository):
        return path
    what = f"model.fuse_lora {source!r}"
    file = download(repository, name, what=what)
    if file.name == PEFT_FILE_NAME:  # its scale is beside it
        download(repository, f"{name.removesuffix(PEFT_FILE_NAME)}{PEFT_CONFIG}", what=what)
    return file
