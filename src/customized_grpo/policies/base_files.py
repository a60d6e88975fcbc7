"""The files that a frozen base is loaded from, and a fingerprint of their content."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from customized_grpo.embedded import EMBEDDED, embedded_folder
from customized_grpo.errors import UserError
from customized_grpo.files import read_json, sampled_sha256
from customized_grpo.hub import INDEX, MODULAR_INDEX, index_of
from customized_grpo.policies.lora_file import find_file

if TYPE_CHECKING:
    from customized_grpo.config.schema import ModelConfig

ENDINGS = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Endings of the files that hold weights, configs and tokenizers."""


def fingerprint_base(model: ModelConfig) -> dict[str, str]:
    """Return a digest of every file that training starts from, by its path in the checkpoint.

    Those of LoRAs are `fuse_lora.0`, `fuse_lora.1`, ... and `start_lora`.

    Sizes and sampled blocks are read, some megabytes of each file: a base of 24 GB takes a second.

    Args:
        model: The recipe's `model` section; its base has been loaded, so that the files are here.

    Returns:
        Empty if the files are nowhere to be found, as for a family that loads its base in a way of its own.

    Raises:
        UserError: A file cannot be read.
    """
    folder = _folder(model.path)
    files = {} if folder is None else {str(file.relative_to(folder)): file for file in _files(folder)}
    # By its place: the same file twice, at two scales, is another base.
    loras = {f"fuse_lora.{number}": lora.path for number, lora in enumerate(model.fuse_lora)}
    if model.start_lora is not None:
        loras["start_lora"] = model.start_lora
    for name, path in loras.items():
        file = _lora_file(path)
        if file is not None:
            files[name] = file
    try:
        # Sampled and not read whole: a base has tens of GB, and every start of a run asks.
        return {name: sampled_sha256(file) for name, file in sorted(files.items())}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def _folder(path: str) -> Path | None:
    """Return the folder of a base: a folder of the user's, the hub's cache, or the package's own."""
    if path in EMBEDDED:
        return embedded_folder(path)
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    index = _cached(path, INDEX) or _cached(path, MODULAR_INDEX)
    return None if index is None else index.parent


def _files(folder: Path) -> list[Path]:
    """Return the index and the files of every part that it names; of a folder without index all files.

    A snapshot in the hub's cache may hold other files, which come and go without meaning.
    """
    index = index_of(folder)
    folders = [folder]
    files = []
    if index.is_file():
        parts = [name for name, entry in read_json(index).items() if isinstance(entry, list)]
        folders = [folder / name for name in parts]
        files = [index]
    for part in folders:
        files += [file for file in part.rglob("*") if file.name.endswith(ENDINGS) and file.is_file()]
    return files


def _lora_file(path: str) -> Path | None:
    file = Path(path).expanduser()
    if file.exists():
        return find_file(file)
    repository, _, name = path.partition(":")
    return _cached(repository, name) if name else None


def _cached(repository: str, name: str) -> Path | None:
    """Return a file of the hub in the download cache, or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(repository, name)
    except HFValidationError:
        return None
    return Path(file) if isinstance(file, str) else None
