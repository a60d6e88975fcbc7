"""What layers are called outside diffusers: the original names of FLUX, in which several layers are one.

diffusers keeps query, key and value apart; the original code, and so ComfyUI's model and kohya's files, have
one matrix `qkv` whose rows they are, and in the single blocks of FLUX.1 one `linear1` with the rows of the
MLP below. Sources: the conversion of original checkpoints in diffusers (`single_file_utils`,
`lora_conversion_utils`) and ComfyUI's `flux_to_diffusers`. Qwen-Image is called the same everywhere.

Left out on purpose: `norm_out.linear`, whose two halves the original has in the other order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Family = Literal["flux1", "flux2", "qwen_edit"]


@dataclass(frozen=True)
class Place:
    """Where a layer's rows are in a matrix of the original model.

    Attributes:
        name: Of that matrix, without ".weight".
        start: First row, in widths of the layer's input; 0 for a layer that is the whole matrix.
        rows: Rows of the whole matrix, in widths of the layer's input; None for the layer's own.
    """

    name: str
    start: int = 0
    rows: int | None = None


_QKV = 3  # query, key and value, each as wide as the input
_LINEAR1 = 7  # and an MLP four times as wide, in every FLUX.1

_DOUBLE = {
    "attn.to_q": Place("img_attn.qkv", 0, _QKV),
    "attn.to_k": Place("img_attn.qkv", 1, _QKV),
    "attn.to_v": Place("img_attn.qkv", 2, _QKV),
    "attn.to_out.0": Place("img_attn.proj"),
    "attn.add_q_proj": Place("txt_attn.qkv", 0, _QKV),
    "attn.add_k_proj": Place("txt_attn.qkv", 1, _QKV),
    "attn.add_v_proj": Place("txt_attn.qkv", 2, _QKV),
    "attn.to_add_out": Place("txt_attn.proj"),
}
_BLOCKS: dict[tuple[str, str], dict[str, Place]] = {
    ("flux1", "transformer_blocks"): {
        **_DOUBLE,
        "ff.net.0.proj": Place("img_mlp.0"),
        "ff.net.2": Place("img_mlp.2"),
        "ff_context.net.0.proj": Place("txt_mlp.0"),
        "ff_context.net.2": Place("txt_mlp.2"),
        "norm1.linear": Place("img_mod.lin"),
        "norm1_context.linear": Place("txt_mod.lin"),
    },
    ("flux1", "single_transformer_blocks"): {
        "attn.to_q": Place("linear1", 0, _LINEAR1),
        "attn.to_k": Place("linear1", 1, _LINEAR1),
        "attn.to_v": Place("linear1", 2, _LINEAR1),
        "proj_mlp": Place("linear1", 3, _LINEAR1),
        "proj_out": Place("linear2"),
        "norm.linear": Place("modulation.lin"),
    },
    ("flux2", "transformer_blocks"): {
        **_DOUBLE,
        "ff.linear_in": Place("img_mlp.0"),
        "ff.linear_out": Place("img_mlp.2"),
        "ff_context.linear_in": Place("txt_mlp.0"),
        "ff_context.linear_out": Place("txt_mlp.2"),
    },
    ("flux2", "single_transformer_blocks"): {
        "attn.to_qkv_mlp_proj": Place("linear1"),
        "attn.to_out": Place("linear2"),
    },
}
_STACKS = {"transformer_blocks": "double_blocks", "single_transformer_blocks": "single_blocks"}
_LAYER = re.compile(r"((?:single_)?transformer_blocks)\.(\d+)\.(.+)")


def original_place(family: Family, layer: str) -> Place | None:
    """Return where a layer of a diffusers transformer is in the original model; None if it is not known.

    Args:
        family: Of the recipe's model.
        layer: Name such as "transformer_blocks.0.attn.to_q".
    """
    if (match := _LAYER.fullmatch(layer)) is None:
        return None
    stack, number, rest = match.groups()
    if family == "qwen_edit":
        return Place(layer) if stack == "transformer_blocks" else None
    place = _BLOCKS[family, stack].get(rest)
    if place is None:
        return None
    return Place(f"{_STACKS[stack]}.{number}.{place.name}", place.start, place.rows)
