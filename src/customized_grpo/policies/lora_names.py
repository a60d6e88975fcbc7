"""Names of a LoRA file's tensors, as trainers and programs write them, and the layers that they mean.

| written by | key of one matrix |
|---|---|
| diffusers, and this package | transformer.LAYER.lora_A.weight |
| peft | base_model.model.LAYER.lora_A.weight |
| ai-toolkit, ComfyUI | diffusion_model.LAYER.lora_A.weight |
| DiffSynth | LAYER.lora_A.default.weight |
| SimpleTuner, OneTrainer | transformer.LAYER.lora_down.weight, lora_transformer_LAYER.lora_down.weight |
| sd-scripts, musubi-tuner, LyCORIS | lora_unet_LAYER.lora_down.weight, lycoris_LAYER.lora_down.weight |
| XLabs, UNO | double_blocks.0.processor.qkv_lora1.down.weight |

LAYER is a name in diffusers' model or in the original one, whose matrices may hold several layers below each
other (`other_programs`); after a prefix that ends with "_" its dots are underscores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from customized_grpo.policies.other_programs import Place

Role = Literal["down", "up", "alpha"]

PEFT_PREFIX = "base_model.model."
DOTTED_PREFIXES = (PEFT_PREFIX, "model.", "diffusion_model.", "transformer.", "unet.", "pipe.", "dit.")
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lora_dit_", "lycoris_")

_ROLES: dict[str, Role] = {"A": "down", "B": "up", "down": "down", "up": "up"}
_MATRIX = re.compile(
    r"(.+?)\.(?:lora_(A|B|down|up)(?:\.[^.]+)?|(?:lora\.|lora_linear_layer\.)?(down|up))\.weight"
)
_ALPHA = re.compile(r"(.+?)\.(?:alpha|lora_alpha|network_alpha)")
_WITHOUT_WEIGHT = re.compile(r"(.+?)\.lora_(A|B|down|up)")

_RETRAIN = "Save it as a plain LoRA, or merge it into the base elsewhere and name that as model.path."
_SPLIT = "Only the transformer is adapted here: save the transformer's part as a file of its own."
_TEXT_ENCODER = r"^(base_model\.model\.)?(lora_te\d*_|text_encoders?(_\d)?\.|text_model\.|te\d*\.)"
_REFUSALS = (
    (r"\.lora_magnitude_vector|\.dora_scale", "a DoRA, whose magnitudes are no low-rank update", _RETRAIN),
    (r"\.hada_[wt]", "a LoHa, a product of two low-rank matrices", _RETRAIN),
    (r"\.lokr_[wt]", "a LoKr, a Kronecker product, which has no small rank", _RETRAIN),
    (
        r"\bfinal_layer[._]adaLN_modulation|_final_layer_adaLN_modulation",
        "the last modulation by its original name, whose halves are in the other order in diffusers",
        "Save it under diffusers' name, norm_out.linear, with the halves of its up matrix exchanged, or "
        "leave this layer out.",
    ),
    (r"\.(oft|boft|oft_diag|oft_blocks)\b|\.oft_", "an OFT, a rotation of the weights", _RETRAIN),
    (r"\.lora_mid\b", "a LoRA of convolutions, with a third matrix", _RETRAIN),
    (r"\.(diff|diff_b|set_weight)$", "whole differences of weights, not low-rank ones", _RETRAIN),
    (r"\.lora_(A|B|down|up)(\.[^.]+)?\.bias$", "a LoRA with biases of its own (lora_bias)", _RETRAIN),
    (r"\.lora_embedding_", "a LoRA of embeddings", _RETRAIN),
    (r"(weight_scale|scale_weight|scale_input)$", "quantised matrices", _RETRAIN),
    (_TEXT_ENCODER, "layers of a text encoder", _SPLIT),
    (r"^bundle_emb\.", "embeddings of new words", _SPLIT),
    (r"modules_to_save", "whole layers (modules_to_save)", _RETRAIN),
)  # fmt: skip


@dataclass(frozen=True)
class Refusal:
    """Why a tensor can be no part of a low-rank update of the transformer.

    Attributes:
        reason: What the file has instead.
        hint: What the user can do.
    """

    reason: str
    hint: str


def refusal_of(key: str) -> Refusal | None:
    """Return why a key's tensor cannot be taken; None for one that is not known to be of another kind."""
    for pattern, reason, hint in _REFUSALS:
        if re.search(pattern, key):
            return Refusal(reason, hint)
    return None


def split_key(key: str) -> tuple[str, Role] | None:
    """Return the name of a matrix, prefix included, and what of it the tensor is; None for any other key."""
    matrix = _MATRIX.fullmatch(key) or _WITHOUT_WEIGHT.fullmatch(key)
    if matrix is not None:
        letter = next(group for group in matrix.groups()[1:] if group)
        return matrix[1], _ROLES[letter]
    alpha = _ALPHA.fullmatch(key)
    return None if alpha is None else (alpha[1], "alpha")


class LayerNames:
    """All names by which files call the linear layers of a transformer.

    Args:
        layers: The layers, by their names in diffusers, in any order.
        place: Where a layer is in the original model, see `OtherPrograms`.
    """

    def __init__(self, layers: Iterable[str], place: Callable[[str], Place | None]) -> None:
        self._dotted: dict[str, tuple[str, ...]] = {}
        rows: dict[str, list[tuple[int, str]]] = {}
        for layer in layers:
            self._dotted[layer] = (layer,)
            original = place(layer)
            if original is not None and original.name != layer:
                # one original matrix, such as qkv, has the rows of several layers of diffusers
                rows.setdefault(original.name, []).append((original.start, layer))
        for name, parts in rows.items():
            self._dotted[name] = tuple(layer for _, layer in sorted(parts))
        self._dotted |= _processor_names(self._dotted)
        # kohya writes underscores for dots, which cannot be turned back without the list of layers.
        self._flat = {name.replace(".", "_"): found for name, found in self._dotted.items()}

    def find(self, name: str) -> tuple[str, ...]:
        """Return the layers whose rows, one below the other, a matrix of that name has; () if none has it."""
        for prefix in FLAT_PREFIXES:
            if name.startswith(prefix):
                return self._flat.get(name.removeprefix(prefix), ())
        stripped = None
        while name != stripped:  # several prefixes may follow each other, as in base_model.model.transformer.
            if name in self._dotted:
                return self._dotted[name]
            stripped = name
            prefix = next((one for one in DOTTED_PREFIXES if name.startswith(one)), "")
            name = name.removeprefix(prefix)
        return ()


def _processor_names(names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the names that XLabs and UNO give to the attention of FLUX.1.

    In the single blocks, whose original matrix `linear1` has the MLP's rows below query, key and value, their
    LoRA is on these three alone.
    """
    found = {}
    for name, layers in names.items():
        block, _, rest = name.rpartition(".img_attn.")
        if rest:
            found[f"{block}.processor.{rest}_lora1"] = layers
        block, _, rest = name.rpartition(".txt_attn.")
        if rest:
            found[f"{block}.processor.{rest}_lora2"] = layers
        block, _, rest = name.rpartition(".")
        if block.startswith("single_blocks."):
            if rest == "linear1":
                # q, k and v of the four parts of linear1; the MLP has no LoRA there.
                found[f"{block}.processor.qkv_lora"] = layers[:3]
            elif rest == "linear2":
                found[f"{block}.processor.proj_lora"] = layers
    return found
