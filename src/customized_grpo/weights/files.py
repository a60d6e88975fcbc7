"""Files of a checkpoint's folder, checked before anything is loaded: milliseconds, for any size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from customized_grpo.errors import UserError
from customized_grpo.files import open_tensors, read_json

WEIGHT_FILES = ("model", "diffusion_pytorch_model")
"""How transformers and diffusers call the weights of a model, without the endings."""
JSON_FILES = (
    "config.json",
    "scheduler_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "vocab.json",
)
FLOATS = ("BF16", "F16", "F32", "F64")
AGAIN = "Download or copy it again."


def check_weight_files(folder: Path) -> None:
    """Check the safetensors files of a model's folder by their headers.

    Raises:
        UserError: There are none, one is missing, cut or a pointer of git-lfs, or holds no plain numbers.
    """
    for file in weight_files(folder):
        with open_tensors(file) as opened:
            for name in opened.keys():  # noqa: SIM118 not a mapping
                dtype = opened.get_slice(name).get_dtype()
                # other tensors, such as positions, may be whole numbers
                if name.endswith((".weight", ".bias")) and dtype not in FLOATS:
                    raise UserError(
                        f"{file}: {name} is stored as {dtype}, not as 16- or 32-bit numbers",
                        hint="Use the checkpoint that is not quantised; model.quantisation makes it smaller.",
                    )


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model's folder that the libraries load.

    Raises:
        UserError: There are none, or one that the index names is not there.
    """
    for base in WEIGHT_FILES:
        whole = folder / f"{base}.safetensors"
        if whole.is_file():
            return [whole]
        index = folder / f"{base}.safetensors.index.json"
        if index.is_file():
            return list(_shards(index))
    names = " or ".join(f"{base}.safetensors" for base in WEIGHT_FILES)
    hint = "All parts must be there as safetensors, as `save_pretrained` writes them."
    # sorted, so that a message does not depend on the file system
    for file in sorted(folder.glob("*.*.safetensors")):
        base = file.name.partition(".")[0]
        if base in WEIGHT_FILES:  # as model.fp16.safetensors
            hint = f"Variants are not read: rename {file.name} to {base}.safetensors."
    raise UserError(f"{folder}: there are no weights, {names}", hint=hint)


def check_json_files(folder: Path) -> None:
    """Check the JSON files of a folder that are loaded; UserError names the first that is no object."""
    for name in JSON_FILES:
        if (folder / name).is_file():
            read_json(folder / name)


def _shards(index: Path) -> Iterator[Path]:
    places: Any = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index}: weight_map must say which file has which tensor", hint=AGAIN)
    for name in sorted({str(place) for place in places.values()}):
        # the last part alone: an index from elsewhere must not name files outside of the folder
        file = index.with_name(Path(name).name)
        if not file.is_file():
            raise UserError(f"{file}: no such file, but {index.name} names it", hint=AGAIN)
        yield file
