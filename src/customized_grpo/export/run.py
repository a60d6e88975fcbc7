"""`cgrpo export`: the adapter of a run as a file for other programs, with a card that says what it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.export.adapter import read_adapter
from customized_grpo.export.card import render_card
from customized_grpo.export.formats import FORMATS, FormatName
from customized_grpo.export.metadata import header
from customized_grpo.files import is_free, new_folder, write_tensors
from customized_grpo.pages.page import write_page
from customized_grpo.pages.run_data import read_run
from customized_grpo.policies.lora_file import FILE_NAME

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export_run(
    run_dir: Path,
    name: FormatName,
    *,
    out: Path | None = None,
    step: int | None = None,
    average: bool | None = None,
    precision: Precision = "fp32",
) -> Path:
    """Write an adapter and its model card into a new folder.

    Args:
        run_dir: Folder of the run.
        name: One of `FORMATS`.
        out: New or empty folder; None means `export/NAME` in the run folder.
        step: Iteration of the checkpoint; None means the newest.
        average: Whether the moving average is exported; None means what the run is judged by.
        precision: Type of the numbers in the file: fp32 is what was trained, the others take half the space.

    Returns:
        The safetensors file; README.md is beside it.

    Raises:
        UserError: The run has no such checkpoint, the format no names for its layers, or the folder is taken.
    """
    folder = run_dir / "export" / name if out is None else out
    if not is_free(folder):
        raise UserError(
            f"{folder} already exists and is not an empty folder", hint="Name a new one with --out."
        )
    adapter = read_adapter(run_dir, step=step, average=average)
    tensors = in_precision(FORMATS[name](adapter), precision)  # refuses before anything is written
    title = run_dir.resolve().name
    file = folder / (FILE_NAME if name == "diffusers" else f"{file_stem(title)}.safetensors")
    card = render_card(read_run(run_dir), adapter, name, file.name)
    with new_folder(folder) as draft:
        write_tensors(draft / file.name, tensors, header(adapter, name, tensors, title=title))
        write_page(draft / "README.md", card)
    return file


def in_precision(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Return tensors in another type.

    Raises:
        UserError: A number is too large for it.
    """
    converted = {key: tensor.to(DTYPES[precision]) for key, tensor in tensors.items()}
    large = [key for key, tensor in converted.items() if not torch.isfinite(tensor).all()]
    if large:
        raise UserError(f"{large[0]} has numbers that {precision} cannot hold", hint="Use bf16 or fp32.")
    return converted


def file_stem(title: str) -> str:
    """Return a name for a file in a folder shared with other adapters: letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip(".-") or "adapter"
