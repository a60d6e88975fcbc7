"""Files of checkpoints on the hub, with errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from customized_grpo import files
from customized_grpo.errors import UserError
from customized_grpo.libraries import quiet

INDEX = "model_index.json"
MODULAR_INDEX = "modular_model_index.json"
"""That of a modular pipeline of diffusers, which has no other."""


SINGLE_FILES = {".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin", ".onnx"}
"""Endings of files that hold a whole model; no repository of the hub is called so."""


def is_hub_id(path: str) -> bool:
    """Return whether a path is an id of the hub, "owner/name", no folder here and no embedded base."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).is_dir()


def public_name(path: str) -> str:
    """Return what to call a model or file in public: a hub id, or the last part of a path of this machine."""
    repository, colon, _ = path.partition(":")
    return path if is_hub_id(repository if colon else path) else Path(path).name


def index_of(folder: Path) -> Path:
    """Return the index of a checkpoint's folder; `INDEX` where there is none."""
    modular = folder / MODULAR_INDEX
    return modular if modular.is_file() and not (folder / INDEX).is_file() else folder / INDEX


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
    what = what or f"model.path {path!r}"
    # first, because `folder/model.safetensors` has the form of a hub id
    if Path(path).suffix in SINGLE_FILES:
        raise UserError(
            f"{what}: a single file, where a folder in diffusers' or transformers' layout is needed",
            hint="Convert it once with diffusers, for example FluxKontextPipeline.from_single_file(FILE)"
            ".save_pretrained(FOLDER), and name the folder.",
        )
    if not is_hub_id(path):
        raise UserError(
            f"{what}: no such folder",
            hint='It must be "toybox", an existing folder, or a hub id of the form "owner/name".',
        )
    # quiet() turns off the hub's progress bars as well
    with explained(path, name, what), quiet(["transformers"]):
        from huggingface_hub import hf_hub_download

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
    check_endpoint()
    try:
        yield
    except UserError:
        raise
    # the hub's client has changed its HTTP library twice (requests, httpx, httpx2), and passes on whatever
    # that raises of proxies, certificates, tokens and addresses
    except Exception as error:
        raise _explained(error, path, name, what or f"model.path {path!r}") from error


def check_endpoint() -> None:
    """Refuse an HF_ENDPOINT that is no address, before any library reads it.

    Raises:
        UserError: It is none.
    """
    endpoint = os.environ.get("HF_ENDPOINT")
    if not endpoint:
        return
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # such as a bracket that nothing closes
        is_address = False
    if not is_address:
        raise UserError(
            f"HF_ENDPOINT {endpoint!r} is no address of a hub",
            hint="Write it with its scheme, such as https://hf-mirror.com, or unset it.",
        )


def _explained(error: Exception, path: str, name: str, what: str) -> UserError:
    """Return what the hub's error means for the user, and what to do about it."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The order matters: the first and the second are subclasses of the third and the fourth.
    if isinstance(error, GatedRepoError):
        return UserError(
            f"{what}: the checkpoint is gated",
            hint=f"Accept its licence at https://huggingface.co/{path}, then log in: hf auth login.",
        )
    if isinstance(error, LocalEntryNotFoundError):
        return _out_of_reach(error, path, name, what)
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"{what}: there is no such folder here, and no public checkpoint of this name on the hub",
            hint="Check the spelling. For a private checkpoint log in: hf auth login.",
        )
    if isinstance(error, EntryNotFoundError):
        hint = "Name one in diffusers' layout." if name == INDEX else None
        return UserError(f"{what}: the checkpoint has no {name}", hint=hint)
    if isinstance(error, RevisionNotFoundError):
        return UserError(
            f"{what}: the checkpoint has no such revision",
            hint=f"Its branches and commits are listed at https://huggingface.co/{path}/tree/main.",
        )
    text = " ".join(str(error).split())
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403):
        hint = "Log in with a token that may read it: hf auth login."
    elif isinstance(error, OSError) and error.filename is not None:
        hint = (
            "The download cache must be writable, and certificates readable: see HF_HOME and SSL_CERT_FILE."
        )
    else:
        hint = _setting_to_blame(text)
    return UserError(f"{what}: {name} could not be fetched: {text or type(error).__name__}", hint=hint)


def _out_of_reach(error: Exception, path: str, name: str, what: str) -> UserError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set: the hub cannot be reached"
    else:
        reason = "the hub cannot be reached"
    cause = "" if error.__cause__ is None else f": {' '.join(str(error.__cause__).split())}"
    return UserError(
        f"{what}: no such folder, not in the download cache, and {reason} ({name}{cause})",
        hint=f"Check the spelling and the connection, or fetch it elsewhere: hf download {path}.",
    )


def _setting_to_blame(text: str) -> str | None:
    """Return what to do about an error of the HTTP library, by its words; None if they are not known."""
    hints = {
        "unknown scheme": "Write HTTPS_PROXY or ALL_PROXY as http://host:port or socks5://host:port.",
        "socks": "ALL_PROXY names a SOCKS proxy: pip install socksio, or unset ALL_PROXY.",
        "invalid port": "Correct HTTPS_PROXY, ALL_PROXY or HF_ENDPOINT: it has no valid port.",
        "header value": "HF_TOKEN has characters that no token has, such as a line end: set it again.",
        "ascii": "HF_TOKEN has characters that no token has: set it again.",
    }
    lower = text.lower()
    return next((hint for word, hint in hints.items() if word in lower), None)
