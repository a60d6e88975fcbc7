"""Files of checkpoints on the hub, with errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from customized_grpo.errors import UserError
from customized_grpo.libraries import quiet

INDEX = "model_index.json"


def read_json(file: Path) -> dict[str, Any]:
    """Return a small JSON file of a checkpoint.

    Raises:
        UserError: It is missing or not JSON.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{file}: no such file",
            hint="model.path must be a folder in diffusers' layout; convert single-file checkpoints first.",
        ) from error
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {error}") from error
    return content


def download(path: str, name: str) -> Path:
    """Fetch one small file of a checkpoint on the hub.

    Raises:
        UserError: The path is no hub id, or the file cannot be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(
            f"model.path {path!r}: no such folder",
            hint='It must be "toybox", an existing folder, or a hub id of the form "owner/name".',
        )
    with quiet():
        try:
            return Path(hf_hub_download(path, name))
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise hub_error(path, error, file=name) from error


def hub_error(path: str, error: Exception, *, what: str | None = None, file: str = INDEX) -> UserError:
    """Say why a file of a checkpoint could not be had from the hub, and what to do about it.

    Args:
        path: The hub id.
        error: What the hub's library raised.
        what: The setting that asked for it; None means model.path.
        file: Name of the file.
    """
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError
    from huggingface_hub.errors import RepositoryNotFoundError as NotFound

    what = what or f"model.path {path!r}"
    if isinstance(error, GatedRepoError):
        return UserError(
            f"{what}: the checkpoint is gated",
            hint=f"Accept its licence at https://huggingface.co/{path}, then log in: hf auth login.",
        )
    if isinstance(error, LocalEntryNotFoundError):
        return UserError(
            f"{what}: no such folder, not in the download cache, and the hub cannot be reached ({file})",
            hint=f"Check the spelling and the connection, or fetch it elsewhere: hf download {path}.",
        )
    if isinstance(error, NotFound):
        return UserError(f"{what}: no such folder, and no such checkpoint on the hub, or a private one")
    if isinstance(error, EntryNotFoundError):
        return UserError(f"{what}: the checkpoint has no {file}", hint="Name one in diffusers' layout.")
    return UserError(f"{what}: {file} could not be fetched: {error}")


def is_hub_id(path: str) -> bool:
    """Return whether a model's path is an id of the hub, not a folder here or "toybox"."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).is_dir()


def public_name(path: str) -> str:
    """Return what to call a model or file in public: a hub id, or the last part of a path of this machine."""
    repository, colon, _ = path.partition(":")
    return path if is_hub_id(repository if colon else path) else Path(path).name
