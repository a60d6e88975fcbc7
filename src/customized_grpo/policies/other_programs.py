"""What programs other than diffusers call a family and its layers, and how diffusers itself is called.

Layers: in the original names of FLUX several layers are one.

diffusers keeps query, key and value apart; the original code, and so ComfyUI's model and kohya's files, have
one matrix `qkv` whose rows they are, and in the single blocks of FLUX.1 one `linear1` with the rows of the
MLP below. Sources: the conversion of original checkpoints in diffusers (`single_file_utils`,
`lora_conversion_utils`) and ComfyUI's `flux_to_diffusers`. Qwen-Image is called the same everywhere, 2.1 as
well: musubi-tuner's `networks/lora_qwen_image_21.py` adapts the blocks of a model with these names, and
ComfyUI's `comfy/lora.py` maps "transformer." before them, also to the two layers that are one matrix there
(gate and projection of the MLP). FLUX.3: diffusers' `_convert_non_diffusers_flux3_lora_to_diffusers`.

Left out on purpose: `norm_out.linear`, whose two halves the original has in the other order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from customized_grpo.reference_sizes import ReferenceRule

if TYPE_CHECKING:
    from customized_grpo.config.schema import ModelConfig


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
_FLUX1_DOUBLE = {
    **_DOUBLE,
    "ff.net.0.proj": Place("img_mlp.0"),
    "ff.net.2": Place("img_mlp.2"),
    "ff_context.net.0.proj": Place("txt_mlp.0"),
    "ff_context.net.2": Place("txt_mlp.2"),
    "norm1.linear": Place("img_mod.lin"),
    "norm1_context.linear": Place("txt_mod.lin"),
}
_FLUX1_SINGLE = {
    "attn.to_q": Place("linear1", 0, _LINEAR1),
    "attn.to_k": Place("linear1", 1, _LINEAR1),
    "attn.to_v": Place("linear1", 2, _LINEAR1),
    "proj_mlp": Place("linear1", 3, _LINEAR1),
    "proj_out": Place("linear2"),
    "norm.linear": Place("modulation.lin"),
}
_FLUX2_DOUBLE = {
    **_DOUBLE,
    "ff.linear_in": Place("img_mlp.0"),
    "ff.linear_out": Place("img_mlp.2"),
    "ff_context.linear_in": Place("txt_mlp.0"),
    "ff_context.linear_out": Place("txt_mlp.2"),
}
_FLUX2_SINGLE = {
    "attn.to_qkv_mlp_proj": Place("linear1"),
    "attn.to_out": Place("linear2"),
}
_FLUX_OUTSIDE = {
    "x_embedder": Place("img_in"),
    "context_embedder": Place("txt_in"),
    "proj_out": Place("final_layer.linear"),
}
_FLUX1_OUTSIDE = {
    **_FLUX_OUTSIDE,
    "time_text_embed.timestep_embedder.linear_1": Place("time_in.in_layer"),
    "time_text_embed.timestep_embedder.linear_2": Place("time_in.out_layer"),
    "time_text_embed.text_embedder.linear_1": Place("vector_in.in_layer"),
    "time_text_embed.text_embedder.linear_2": Place("vector_in.out_layer"),
    "time_text_embed.guidance_embedder.linear_1": Place("guidance_in.in_layer"),
    "time_text_embed.guidance_embedder.linear_2": Place("guidance_in.out_layer"),
}
_FLUX2_OUTSIDE = {
    **_FLUX_OUTSIDE,
    "time_guidance_embed.timestep_embedder.linear_1": Place("time_in.in_layer"),
    "time_guidance_embed.timestep_embedder.linear_2": Place("time_in.out_layer"),
    "time_guidance_embed.guidance_embedder.linear_1": Place("guidance_in.in_layer"),
    "time_guidance_embed.guidance_embedder.linear_2": Place("guidance_in.out_layer"),
    "double_stream_modulation_img.linear": Place("double_stream_modulation_img.lin"),
    "double_stream_modulation_txt.linear": Place("double_stream_modulation_txt.lin"),
    "single_stream_modulation.linear": Place("single_stream_modulation.lin"),
}
_LAYER = re.compile(r"((?:single_)?transformer_blocks)\.(\d+)\.(.+)")


def flux1_place(layer: str) -> Place | None:
    """Return where a layer of FLUX.1, such as "transformer_blocks.0.attn.to_q", is in the original model."""
    return _FLUX1_OUTSIDE.get(layer) or _flux_place(layer, _FLUX1_DOUBLE, _FLUX1_SINGLE)


def flux2_place(layer: str) -> Place | None:
    """Return where a layer of FLUX.2 is in the original model; None if that is not known."""
    return _FLUX2_OUTSIDE.get(layer) or _flux_place(layer, _FLUX2_DOUBLE, _FLUX2_SINGLE)


def _flux_place(layer: str, double: Mapping[str, Place], single: Mapping[str, Place]) -> Place | None:
    match = _LAYER.fullmatch(layer)
    if match is None:
        return None
    stack, number, rest = match.groups()
    is_double = stack == "transformer_blocks"
    # layer of a block -> matrix of the original block; the number of the block stays
    place = double.get(rest) if is_double else single.get(rest)
    if place is None:
        return None
    original_stack = "double_blocks" if is_double else "single_blocks"
    return Place(f"{original_stack}.{number}.{place.name}", place.start, place.rows)


def qwen_image_place(layer: str) -> Place | None:
    """Return the layer's own name, if it is in a block: the originals of Qwen-Image have the same ones."""
    return Place(layer) if layer.startswith("transformer_blocks.") else None


_FLUX3_STACKS = {
    "single_transformer_blocks": "single_blocks",
    "mode_blocks.image": "content_mode_blocks.image",
    "mode_blocks.image_cond": "content_mode_blocks.image_cond",
    "txt_mode_blocks": "txt_mode_blocks",
}
_FLUX3_LAYERS = {
    "attn.to_q": "q_proj",
    "attn.to_k": "k_proj",
    "attn.to_v": "v_proj",
    "attn.to_out.0": "attn_out",
    "ff.linear_in": "mlp_in",
    "ff.linear_out": "mlp_out",
}
_FLUX3_LAYER = re.compile(r"(.+?)\.(\d+)\.(.+)")


def flux3_place(layer: str) -> Place | None:
    """Return where a layer of FLUX.3 is in the original model, whose matrices are the same ones."""
    match = _FLUX3_LAYER.fullmatch(layer)
    if match is None:
        return None
    stack, number, rest = match.groups()
    if stack not in _FLUX3_STACKS or rest not in _FLUX3_LAYERS:
        return None
    return Place(f"{_FLUX3_STACKS[stack]}.{number}.{_FLUX3_LAYERS[rest]}")


def no_place(layer: str) -> None:
    """Return None: nothing is known of the original model."""


def embedded_guidance_call(model: ModelConfig) -> list[str]:
    """Return the arguments of a pipeline that calls its guidance `guidance_scale`."""
    return [
        f"guidance_scale={model.guidance},",
        f"max_sequence_length={model.max_text_tokens},",
    ]


@dataclass(frozen=True)
class OtherPrograms:
    """What other programs need to know of a family: for exported files and their model cards.

    Attributes:
        place: Where a layer, by its name in diffusers, is in the original model; None where it is not known.
            The formats of ComfyUI and kohya need it.
        modelspec: Architecture as `modelspec.architecture` has it, without "/lora"; None: not written.
        network_module: kohya's `ss_network_module`; None: not written.
        base_version: kohya's `ss_base_model_version`; None: not written.
        unconfirmed: What is not known of, or known to be missing in, the programs that read a format, by
            the format's name.
        caution: What somebody who draws with that pipeline must know; None: nothing.
        pipeline: The class of diffusers with which a model card loads the base.
        call: Maps a recipe's `model` section to lines of Python, the arguments with which that pipeline draws
            as the policy does, apart from prompt, image, size, steps and generator; None if no pipeline can.
        comfyui_originals: Whether ComfyUI is given original names, as it maps no others of this family.
        reference_rule: The rule by which that pipeline brings a reference to its size; None: it does not.
        keep_size: The argument with which it takes a reference as it is in spite of that; None: it has none.
        set_size: The argument with which it brings references to "{pixels}" pixels; None: it has none.
        even_levels: The argument with which it draws at even noise levels in "{steps}" steps, where its
            checkpoint may bring others; None: it always does.
    """

    place: Callable[[str], Place | None] = no_place
    modelspec: str | None = None
    network_module: str | None = None
    base_version: str | None = None
    unconfirmed: Mapping[str, str] = field(default_factory=dict)
    caution: str | None = None
    pipeline: str = "DiffusionPipeline"
    call: Callable[[ModelConfig], list[str] | None] = embedded_guidance_call
    comfyui_originals: bool = False
    reference_rule: ReferenceRule | None = None
    keep_size: str | None = None
    set_size: str | None = None
    even_levels: str | None = None
