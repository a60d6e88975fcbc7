"""`cgrpo export`: what a run has trained as files for other programs, with a card that says what it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.export.adapter import RunAdapter, read_adapter
from customized_grpo.export.card import TRANSFORMER, render_card
from customized_grpo.export.formats import FORMATS, FormatName
from customized_grpo.export.merge import merge_into, merged_adapter, truncated_adapter
from customized_grpo.export.metadata import header
from customized_grpo.files import is_free, new_folder, write_tensors
from customized_grpo.libraries import quiet
from customized_grpo.pages.page import write_page
from customized_grpo.pages.run_data import RunData, read_run
from customized_grpo.policies.families import get_family
from customized_grpo.policies.loading import load_transformer
from customized_grpo.policies.lora_file import FILE_NAME
from customized_grpo.runs.reading import Step

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Merge:
    """What a run's adapter is merged with.

    Attributes:
        into: "adapter": one adapter with the LoRAs of `model.fuse_lora`, for the plain base; "transformer":
            the base's own weights.
        rank: Rank that the one adapter is cut to; None keeps the sum of all, which is exact.
    """

    into: Literal["adapter", "transformer"]
    rank: int | None = None


def export_run(
    run_dir: Path,
    name: FormatName,
    *,
    out: Path | None = None,
    step: Step = None,
    average: bool | None = None,
    precision: Precision | None = None,
    merge: Merge | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Path:
    """Write an adapter, or a transformer with it, and the model card into a new folder.

    Args:
        run_dir: Folder of the run.
        name: One of `FORMATS`; a transformer is always written for diffusers.
        out: New or empty folder; None means `export/NAME` in the run folder, NAME being the format, followed
            by "-merged" for a merged adapter, or "transformer".
        step: Iteration of the checkpoint, or "best"; None means the newest.
        average: Whether the moving average is exported; None means what the run is judged by.
        precision: Type of the numbers in the file. None means fp32 for an adapter, in which it was trained,
            and for a transformer the type in which the run held it.
        merge: What is merged; None for the trained adapter by itself.
        on_note: Gets a sentence that the user should know.

    Returns:
        The safetensors file, or the folder of the transformer; README.md is beside it.

    Raises:
        UserError: The run has no such checkpoint, the format no names for its layers, the folder is taken, or
            something to be merged is missing.
    """
    into_weights = merge is not None and merge.into == "transformer"
    default = TRANSFORMER if into_weights else name if merge is None else f"{name}-merged"
    folder = run_dir / "export" / default if out is None else out
    if not is_free(folder):
        raise UserError(
            f"{folder} already exists and is not an empty folder", hint="Name a new one with --out."
        )
    adapter = read_adapter(run_dir, step=step, average=average)
    if merge is not None:
        adapter = _merged(adapter, merge, on_note)
    run = read_run(run_dir)
    if into_weights:
        return _write_transformer(run, adapter, folder, precision or adapter.config.model.precision)
    tensors = in_precision(FORMATS[name](adapter), precision or "fp32")  # refuses before anything is written
    unconfirmed = get_family(adapter.config.model.family).other_programs.unconfirmed.get(name)
    if unconfirmed is not None:
        on_note(f"format {name}: {unconfirmed}")
    title = run_dir.resolve().name
    file = folder / (FILE_NAME if name == "diffusers" else f"{file_stem(title)}.safetensors")
    card = render_card(run, adapter, name, file.name)
    # The folder gets its name when everything is in it.
    with new_folder(folder) as draft:
        write_tensors(draft / file.name, tensors, header(adapter, name, tensors, title=title))
        write_page(draft / "README.md", card)
    return file


def _merged(adapter: RunAdapter, merge: Merge, on_note: Callable[[str], None]) -> RunAdapter:
    merged = merged_adapter(adapter)
    if merge.rank is None:
        return merged
    cut, lost = truncated_adapter(merged, merge.rank)
    on_note(
        f"cut from rank {merged.rank} to {cut.rank}: of its squared update a layer lacks up to "
        f"{100 * lost:.2g} %"
    )
    return cut


def _write_transformer(run: RunData, adapter: RunAdapter, folder: Path, precision: Precision) -> Path:
    """Write the base's transformer with a merged adapter in its weights, as diffusers does."""
    transformer: Any = load_transformer(adapter.config.model, DTYPES[precision])
    merge_into(transformer, adapter)
    with new_folder(folder) as draft, quiet():
        transformer.save_pretrained(draft / TRANSFORMER)
        write_page(draft / "README.md", render_card(run, adapter, TRANSFORMER, TRANSFORMER))
    return folder / TRANSFORMER


def in_precision(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """Return tensors in another type.

    Raises:
        UserError: A number is too large for it.
    """
    converted = {key: tensor.to(DTYPES[precision]) for key, tensor in tensors.items()}
    # fp16 ends at 65,504.
    large = [key for key, tensor in converted.items() if not torch.isfinite(tensor).all()]
    if large:
        raise UserError(f"{large[0]} has numbers that {precision} cannot hold", hint="Use bf16 or fp32.")
    return converted


def file_stem(title: str) -> str:
    """Return a name for a file in a folder shared with other adapters: letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip(".-") or "adapter"
