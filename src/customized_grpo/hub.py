"""Files of checkpoints on the hub, with errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from customized_grpo import files
from customized_grpo.errors import UserError
from customized_grpo.libraries import quiet

INDEX = "model_index.json"


def is_hub_id(path: str) -> bool:
    """Return whether a model's path is an id of the hub, "owner/name", and not a folder here or "toybox"."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).is_dir()


def public_name(path: str) -> str:
    """Return what to call a model or file in public: a hub id, or the last part of a path of this machine."""
    repository, colon, _ = path.partition(":")
    return path if is_hub_id(repository if colon else path) else Path(path).name


def read_json(file: Path) -> dict[str, Any]:
    """Return a small JSON file of a checkpoint in diffusers' layout.

    Raises:
        UserError: It is missing, damaged or no JSON object.
    """
    hint = "model.path must be a folder in diffusers' layout; convert single-file checkpoints first."
    return files.read_json(file, missing_hint=hint)


def download(path: str, name: str, *, what: str | None = None) -> Path:
    """Fetch a file of a checkpoint on the hub, or find it in the download cache.

    Args:
        path: The hub id.
        name: The file's name in the repository.
        what: The setting that names the checkpoint, for messages; None means model.path.

    Raises:
        UserError: The path is no hub id, or the file cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    what = what or f"model.path {path!r}"
    if not is_hub_id(path):
        raise UserError(
            f"{what}: no such folder",
            hint='It must be "toybox", an existing folder, or a hub id of the form "owner/name".',
        )
    # quiet() turns off the hub's progress bars as well
    with quiet(["transformers"]), explained(path, name, what):
        return Path(hf_hub_download(path, name))


@contextmanager
def explained(path: str, name: str, what: str | None = None) -> Iterator[None]:
    """Turn the hub's errors inside the block into messages that say what to do.

    Args:
        path: The hub id.
        name: What is fetched of it.
        what: The setting that names the checkpoint; None means model.path.

    Raises:
        UserError: It could not be fetched.
    """
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    # ValueError: a malformed id; ImportError: a SOCKS proxy without its package; httpx: a bad HF_ENDPOINT
    except (HfHubHTTPError, OSError, ValueError, ImportError, httpx.HTTPError, httpx.InvalidURL) as error:
        raise _explained(error, path, name, what or f"model.path {path!r}") from error


def _explained(error: Exception, path: str, name: str, what: str) -> UserError:
    """Return what the hub's error means for the user, and what to do about it."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    # The order matters: the first and the second are subclasses of the third and the fourth.
    if isinstance(error, GatedRepoError):
        return UserError(
            f"{what}: the checkpoint is gated",
            hint=f"Accept its licence at https://huggingface.co/{path}, then log in: hf auth login.",
        )
    if isinstance(error, LocalEntryNotFoundError):
        return UserError(
            f"{what}: no such folder, not in the download cache, and the hub cannot be reached ({name})",
            hint=f"Check the spelling and the connection, or fetch it elsewhere: hf download {path}.",
        )
    if isinstance(error, RepositoryNotFoundError):
        return UserError(f"{what}: no such folder, and no such checkpoint on the hub, or a private one")
    if isinstance(error, EntryNotFoundError):
        hint = "Name one in diffusers' layout." if name == INDEX else None
        return UserError(f"{what}: the checkpoint has no {name}", hint=hint)
    return UserError(f"{what}: {name} could not be fetched: {error}")
