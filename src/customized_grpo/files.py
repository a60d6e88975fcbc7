"""Write a file whole or not at all, read a small JSON file with checks, hash a file."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from customized_grpo.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

DRAFT_ENDING = ".draft"
MAX_JSON_BYTES = 64 << 20
_NAME_PART = 40  # characters of the target's name in the draft's; a name may have 255 bytes, 4 a character


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a draft in the folder of `path` to write to, and rename it to `path` when the block ends well.

    Readers see the old file or the new one, never a part, and a kill leaves the old one. Two writers at once
    have a draft each. A symbolic link at `path` is replaced, not followed. The file's mode follows the umask,
    also where a library writes by way of a private (0600) temporary file, as safetensors does.

    Args:
        path: The file to write, in an existing folder.
        durable: Whether the content must reach the disk first, so that a power cut leaves no empty file.

    Raises:
        OSError: The disk refuses; the draft is removed and an older file is intact.
    """
    draft = path.with_name(f".{path.name[:_NAME_PART]}.{secrets.token_hex(8)}{DRAFT_ENDING}")
    draft.touch(exist_ok=False)
    try:
        mode = draft.stat().st_mode
        yield draft
        draft.chmod(mode)  # the umask's, also if the draft itself was replaced
        if durable:
            with draft.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes, *, durable: bool = False) -> Path:
    """Write a file in one step, see `replacing`; return its path."""
    with replacing(path, durable=durable) as draft:
        draft.write_bytes(content)
    return path


def write_text(path: Path, text: str, *, durable: bool = False) -> Path:
    """Write a text file in UTF-8 in one step, see `replacing`; return its path."""
    return write_bytes(path, text.encode(), durable=durable)


def write_json(path: Path, value: Any, *, durable: bool = False) -> Path:
    """Write indented JSON in one step, see `replacing`; return its path.

    Raises:
        ValueError: There is a number in it that is not finite: JSON has none.
    """
    text = json.dumps(value, indent=2, allow_nan=False)
    return write_text(path, text + "\n", durable=durable)


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    durable: bool = False,
) -> Path:
    """Write a safetensors file in one step, see `replacing`; return its path.

    Args:
        path: The file.
        tensors: Contiguous tensors that share no memory.
        metadata: Texts for the file's header.
        durable: Whether the content must reach the disk before the file appears.
    """
    from safetensors.torch import save_file

    with replacing(path, durable=durable) as draft:
        save_file(dict(tensors), draft, None if metadata is None else dict(metadata))
    return path


def read_json(
    path: Path, *, max_bytes: int = MAX_JSON_BYTES, missing_hint: str | None = None
) -> dict[str, Any]:
    """Return the JSON object of a small file.

    Args:
        path: The file.
        max_bytes: Limit of its size.
        missing_hint: What the user can do if there is no such file.

    Raises:
        UserError: The file is missing, unreadable, too large, not JSON in UTF-8, or JSON but no object.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file", hint=missing_hint) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise UserError(f"{path} has more than {max_bytes:,} bytes, the limit of such a file")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is needed, not {type(value).__name__}")
    return value


def open_tensors(path: Path) -> Any:
    """Return an opened safetensors file, to be used in a `with` block; its header is checked, no tensor read.

    Raises:
        UserError: It is missing, cut, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a safetensors file, or only a part of one: {error}",
            hint="Download it again; a file of some hundred bytes is a pointer of git-lfs.",
        ) from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
