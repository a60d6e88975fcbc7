"""The adapter that training continues, `model.start_lora`: rank, alpha and layers are those of its file."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from torch import nn

from customized_grpo.policies.checkpoint_files import empty_transformer
from customized_grpo.policies.families import get_family
from customized_grpo.policies.lora_sources import read_lora

if TYPE_CHECKING:
    from customized_grpo.config.schema import ModelConfig
    from customized_grpo.policies.lora_file import LoraFile

SETTING = "model.start_lora"


def read_start(model: ModelConfig, transformer: nn.Module | None = None) -> LoraFile:
    """Read names, shapes and scales of the adapter that a recipe continues.

    Args:
        model: The recipe's `model` section, which names one.
        transformer: The base without its weights; None builds it from its config.

    Raises:
        UserError: See `lora_sources.read_lora`.
    """
    assert model.start_lora is not None
    place = get_family(model.family).other_programs.place
    return read_lora(model.start_lora, SETTING, transformer or empty_transformer(model), place)


def shaped_like_start(model: ModelConfig) -> ModelConfig:
    """Return a `model` section whose `lora` is that of the adapter it continues; reads small files only.

    Raises:
        UserError: The file is missing, or is no low-rank update of this base alone.
    """
    if model.start_lora is None:
        return model
    transformer = empty_transformer(model)
    file = read_start(model, transformer)
    linears = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    target = target_of(file.entries, linears)
    shape = {"rank": file.rank, "alpha": file.alpha, "target": target}
    return model.model_copy(update={"lora": model.lora.model_copy(update=shape)})


def target_of(layers: Iterable[str], linears: Collection[str]) -> str:
    r"""Return a regular expression of these layers of a model and no others, as short as its blocks allow.

    Layers that all blocks of a kind have become one alternative, with \d+ for the block's number.

    Args:
        layers: Names of the layers.
        linears: Names of all linear layers of the model.
    """
    chosen = set(layers)
    parts = set()
    for name in chosen:
        pattern = re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name), count=1)
        matching = {other for other in linears if re.fullmatch(pattern, other)}
        # Only where all blocks have the layer: a file may leave some blocks alone.
        parts.add(pattern if matching <= chosen else re.escape(name))
    return "|".join(sorted(parts))
