"""LoRAs that a recipe names: where their files are, fetched from the hub if need be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from customized_grpo.hub import download, is_hub_id
from customized_grpo.policies.lora_file import PEFT_FILE_NAME, LoraFile
from customized_grpo.policies.lora_reader import read_lora_file
from customized_grpo.policies.lora_scale import PEFT_CONFIG
from customized_grpo.policies.other_programs import Place


def read_lora(
    source: str, setting: str, transformer: nn.Module, place: Callable[[str], Place | None]
) -> LoraFile:
    """Read names, shapes and scales of a LoRA that a recipe names.

    Args:
        source: A safetensors file, the folder of one, or "owner/name:file" of the hub.
        setting: The setting that names it, for messages.
        transformer: See `read_lora_file`.
        place: See `read_lora_file`.

    Raises:
        UserError: See `read_lora_file`; or it cannot be fetched.
    """
    what = f"{setting} {source!r}"
    return read_lora_file(_find(source, what), transformer, place, source=what)


def _find(source: str, what: str) -> Path:
    """Return the local file or folder, fetched from the hub if need be."""
    path = Path(source).expanduser()
    repository, colon, name = source.partition(":")
    if path.exists() or not colon or not is_hub_id(repository):
        return path
    file = download(repository, name, what=what)
    if file.name == PEFT_FILE_NAME:  # its scale is beside it
        download(repository, f"{name.removesuffix(PEFT_FILE_NAME)}{PEFT_CONFIG}", what=what)
    return file
