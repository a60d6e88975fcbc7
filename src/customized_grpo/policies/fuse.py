"""A published LoRA made part of the frozen base, such as UNO's, before a fresh adapter is put on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from customized_grpo.errors import UserError
from customized_grpo.hub import download
from customized_grpo.libraries import quiet
from customized_grpo.policies.lora import DOWN, EXAMPLES, FILE_PREFIX, PICKLED, UP


def fuse_lora(pipe: Any, source: str) -> None:
    """Add a LoRA to the transformer's weights: W + (alpha / rank) B A.

    Any layout that diffusers knows is accepted, including UNO's own ("...processor.qkv_lora1.down.weight").

    Args:
        pipe: A diffusers pipeline; its transformer's weights change.
        source: A safetensors file, or "owner/name:file" of the hub.

    Raises:
        UserError: No such file, a pickle, or a LoRA of another base; the message names file and tensor.
    """
    file = _find(source)
    with quiet():
        try:
            tensors = type(pipe).lora_state_dict(str(file.parent), weight_name=file.name)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"model.fuse_lora {source!r}: not a LoRA of this family: {error}") from error
        _check_fits(pipe.transformer, tensors, source)  # diffusers only warns of keys that fit nowhere
        pipe.load_lora_weights(str(file.parent), weight_name=file.name)
        pipe.fuse_lora(components=["transformer"])
        pipe.unload_lora_weights()


def _find(source: str) -> Path:
    """Return the local file, fetched from the hub if need be."""
    path = Path(source).expanduser()
    if path.suffix in PICKLED:
        raise UserError(
            f"model.fuse_lora {source!r}: pickled weights are refused: loading them can run any program",
            hint="Use a safetensors file.",
        )
    if path.is_file():
        return path
    repository, colon, name = source.partition(":")
    if not colon or repository.count("/") != 1:
        raise UserError(
            f"model.fuse_lora {source!r}: no such file",
            hint='Give a safetensors file, or "owner/name:file" of the hub.',
        )
    return download(repository, name, what=f"model.fuse_lora {source!r}")


def _check_fits(transformer: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that diffusers would drop with a warning, or fail on far from here."""
    layers = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    strange = []
    misfits = []
    for key, tensor in tensors.items():
        is_down = key.endswith(DOWN)
        name = key.removeprefix(FILE_PREFIX).removesuffix(DOWN if is_down else UP)
        layer = layers.get(name) if key.startswith(FILE_PREFIX) else None
        if layer is None:
            strange.append(key)
            continue
        # A is [rank, in], B is [out, rank]: each must agree with the layer on one side
        fits = tensor.shape[1] == layer.in_features if is_down else tensor.shape[0] == layer.out_features
        if not fits:
            misfits.append(f"{key} {list(tensor.shape)} on {list(layer.weight.shape)}")
    if strange or misfits or not tensors:
        examples = ", ".join((strange or misfits)[:EXAMPLES]) or "it is empty"
        raise UserError(
            f"model.fuse_lora {source!r}: a LoRA of another base or of other parts than the transformer: "
            f"{examples}",
            hint="Name the checkpoint it was made for as model.path.",
        )
