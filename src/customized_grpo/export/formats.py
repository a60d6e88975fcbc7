"""One adapter in the layouts that programs read; tensors in, tensors out.

| format | keys | scale |
|---|---|---|
| diffusers | transformer.LAYER.lora_A.weight, .lora_B.weight | alpha in the file's metadata |
| comfyui | the same; of FLUX.3 diffusion_model.MATRIX.lora_A.weight, .lora_B.weight | folded into lora_B |
| kohya | lora_unet_MATRIX.lora_down.weight, .lora_up.weight, .alpha | alpha tensors |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.export.adapter import Layer, RunAdapter
from customized_grpo.policies.families import get_family
from customized_grpo.policies.lora import DOWN, UP
from customized_grpo.policies.lora_scale import FILE_PREFIX
from customized_grpo.policies.other_programs import Place

FormatName = Literal["diffusers", "comfyui", "kohya"]
FORMAT_NAMES: tuple[FormatName, ...] = get_args(FormatName)

KOHYA_PREFIX = "lora_unet_"
COMFYUI_PREFIX = "diffusion_model."
SHOWN = 3


def diffusers_tensors(adapter: RunAdapter) -> dict[str, Tensor]:
    """Return the tensors as `save_lora_weights` names them; rank and alpha belong in the metadata."""
    return _pairs(adapter.layers, 1.0)


def comfyui_tensors(adapter: RunAdapter) -> dict[str, Tensor]:
    """Return the tensors under the same names, alpha / rank folded into B.

    ComfyUI maps these names for FLUX.1, FLUX.2 and Qwen-Image itself; of FLUX.3 it is given the names of the
    original model, which it takes for every model. A pair without an alpha tensor is taken at scale 1 (its
    `comfy/lora.py` and `weight_adapter/lora.py`); it does not read the metadata.

    Raises:
        UserError: ComfyUI has no name for a layer.
    """
    places = _places(adapter, "comfyui")
    scale = adapter.alpha / adapter.rank
    if not get_family(adapter.config.model.family).other_programs.comfyui_originals:
        return _pairs(adapter.layers, scale)
    # name of a module here -> name of the matrix in the original checkpoint
    renamed = {place.name: adapter.layers[name] for name, place in places.items()}
    return _pairs(renamed, scale, COMFYUI_PREFIX)


def kohya_tensors(adapter: RunAdapter) -> dict[str, Tensor]:
    """Return the tensors under the original names of the model's matrices.

    Layers that are rows of one matrix become one pair of higher rank: with q, k, v the layers present,

        down = [A_q; A_k; A_v],  up = diag(B_q, B_k, B_v),

    whose product is the three products below each other; rows of absent layers are 0. The alpha tensor keeps
    the scale: alpha' / rank' = alpha / rank.

    Raises:
        UserError: A layer has no place in the original model.
    """
    matrices: dict[str, list[tuple[Place, Layer]]] = {}
    for name, place in _places(adapter, "kohya").items():
        matrices.setdefault(place.name, []).append((place, adapter.layers[name]))
    tensors = {}
    for name, parts in matrices.items():
        # rows of q, k and v come in the order of the original matrix, not in that of the layers' names
        down, up = _joined(sorted(parts, key=lambda part: part[0].start))
        key = KOHYA_PREFIX + name.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up
        # The scale alpha / rank must stay, and the joined matrix has a higher rank.
        tensors[f"{key}.alpha"] = torch.tensor(adapter.alpha / adapter.rank * len(down))
    return tensors


FORMATS: Mapping[FormatName, Callable[[RunAdapter], dict[str, Tensor]]] = {
    "diffusers": diffusers_tensors,
    "comfyui": comfyui_tensors,
    "kohya": kohya_tensors,
}
"""Every format by its name on the command line."""


def _pairs(layers: Mapping[str, Layer], scale: float, prefix: str = FILE_PREFIX) -> dict[str, Tensor]:
    tensors = {}
    for name, layer in layers.items():
        tensors[prefix + name + DOWN] = layer.down.contiguous()
        tensors[prefix + name + UP] = (layer.up * scale).contiguous()
    return tensors


def _joined(parts: list[tuple[Place, Layer]]) -> tuple[Tensor, Tensor]:
    """Return down [R, in] and up [rows, R] of a matrix that the layers are rows of, R their ranks' sum."""
    place, layer = parts[0]
    if place.rows is None:
        return layer.down.contiguous(), layer.up.contiguous()
    width = layer.down.shape[1]
    down = torch.cat([part.down for _, part in parts])
    # Block-diagonal: a part's columns of `up` reach only the rows that are its own.
    up = torch.zeros(place.rows * width, len(down), dtype=layer.up.dtype)
    column = 0  # first of the columns of `up`, which are the rows of `down`, that belong to a part
    for part_place, part in parts:
        row = part_place.start * width  # places count rows in widths of the input
        up[row : row + part.up.shape[0], column : column + part.up.shape[1]] = part.up
        column += part.up.shape[1]
    return down, up


def _places(adapter: RunAdapter, name: FormatName) -> dict[str, Place]:
    family = adapter.config.model.family
    original_place = get_family(family).other_programs.place
    places: dict[str, Place] = {}
    unknown = []
    for layer in adapter.layers:
        place = original_place(layer)
        if place is None:
            unknown.append(layer)
        else:
            places[layer] = place
    if unknown:
        examples = ", ".join(unknown[:SHOWN]) + (", ..." if len(unknown) > SHOWN else "")
        raise UserError(
            f"format {name}: {len(unknown)} adapted layers of {family} have no name there: {examples}",
            hint="Export to diffusers, which names every layer; or train another model.lora.target.",
        )
    return places
