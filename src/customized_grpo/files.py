"""Write a file or folder whole or not at all, read a small JSON file with checks, hash a file or a part."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from customized_grpo.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

DRAFT_ENDING = ".draft"
MAX_JSON_BYTES = 64 << 20
NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What fsync says on a network mount that does not offer it, mostly for folders."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_NAME_PART = 40  # characters of the target's name in the draft's; a name may have 255 bytes, 4 a character


@contextmanager
def creating(path: Path) -> Iterator[Path]:
    """Give a draft to write to, as `replacing` does, and let it appear as `path` only if nothing is there.

    Of several processes that create one file exactly one succeeds.

    Raises:
        FileExistsError: There is something at `path`, also if it came after the block began.
        OSError: As `replacing`.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists")
    with replacing(path, over=False) as draft:
        yield draft


@contextmanager
def replacing(path: Path, *, durable: bool = False, over: bool = True) -> Iterator[Path]:
    """Give a draft in the folder of `path` to write to, and rename it to `path` when the block ends well.

    Readers see the old file or the new one, never a part, and a kill leaves the old one. Two writers at once
    have a draft each. A symbolic link at `path` is replaced, not followed. The file's mode follows the umask,
    also where a library writes by way of a private (0600) temporary file, as safetensors does.

    Args:
        path: The file to write, in an existing folder.
        durable: Whether the content must reach the disk first, so that a power cut leaves no empty file.
        over: Whether a file at `path` may be replaced; see `creating`.

    Raises:
        OSError: The disk refuses, or a device, a pipe or a folder is in the place; the draft is removed and
            an older file is intact.
    """
    if path.exists() and not path.is_file():  # root would replace /dev/null by a file
        raise FileExistsError(errno.EEXIST, "exists and is not an ordinary file", str(path))
    draft = path.with_name(f".{path.name[:_NAME_PART]}.{secrets.token_hex(8)}{DRAFT_ENDING}")
    try:
        # made here first, so that its mode is the umask's whatever writes into it later
        draft.touch(exist_ok=False)
        mode = draft.stat().st_mode
        yield draft
        if draft.stat().st_mode != mode:
            draft.chmod(mode)  # the umask's, also if the draft itself was replaced
        if durable:
            sync(draft)
        if over:
            os.replace(draft, path)
        else:
            _move_to_free(draft, path)
    except BaseException as error:
        with suppress(OSError):  # the first error says more, and a draft is never taken for the file
            draft.unlink(missing_ok=True)
        _name(error, draft, path)
        raise


def _move_to_free(draft: Path, path: Path) -> None:
    """Rename a file in one step, or raise FileExistsError if there is something at `path`."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: an empty file holds the place for an instant
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(draft, path)
    else:
        draft.unlink()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a draft of a new folder to fill, and rename it to `path` when the block ends well.

    So a folder is there with all its files or not at all, and a kill leaves at most a hidden draft beside it,
    which the next writer of that folder removes.
    A folder that is there already, see `is_free`, is filled in place: it may be a mount, or the folder above
    it be somebody else's. Its files then appear one by one, each of them whole, in the order of their names.

    Args:
        path: The folder; folders above it are made.

    Raises:
        OSError: The folder is not free, or the disk refuses; the draft is removed.
    """
    if not is_free(path):
        raise FileExistsError(errno.EEXIST, "exists and is not an empty folder", str(path))
    is_there = path.is_dir()
    above = path if is_there else path.parent
    prefix = f".{path.name[:_NAME_PART]}."
    draft = above / f"{prefix}{secrets.token_hex(8)}{DRAFT_ENDING}"
    lock = None
    try:
        above.mkdir(parents=True, exist_ok=True)
        _sweep(above, prefix)
        lock = _make_locked(draft)
        yield draft
        if is_there:
            for entry in sorted(draft.iterdir()):
                os.replace(entry, path / entry.name)
            draft.rmdir()
        else:
            os.replace(draft, path)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        _name(error, draft, path)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _make_locked(draft: Path) -> int | None:
    """Make a draft of a folder; return a descriptor with its lock, see `_lock`."""
    # A name that nobody sweeps, until it is locked; its ending says that it holds no place.
    unlocked = draft.with_name(f".{secrets.token_hex(8)}{DRAFT_ENDING}")
    unlocked.mkdir()
    lock = _lock(unlocked)
    os.replace(unlocked, draft)
    return lock


def _sweep(folder: Path, prefix: str) -> None:
    """Remove drafts of folders whose writers have died, by which their locks were given back."""
    of_same_target = re.compile(f"{re.escape(prefix)}[0-9a-f]{{16}}{re.escape(DRAFT_ENDING)}")
    for entry in folder.iterdir():
        lock = _lock(entry) if of_same_target.fullmatch(entry.name) else None
        if lock is not None:
            shutil.rmtree(entry, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Return a descriptor with the lock of a folder; None if another has it, or nothing can be locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def is_free(folder: Path) -> bool:
    """Return whether a new folder may take this place: nothing is there, or only what killed writers left."""
    if not folder.exists():
        return not folder.is_symlink()
    return folder.is_dir() and all(entry.name.endswith(DRAFT_ENDING) for entry in folder.iterdir())


def _name(error: BaseException, draft: Path, path: Path) -> None:
    """Let an error of the disk name the file itself, which a failed write does not, or its draft."""
    if not isinstance(error, OSError):
        return
    if error.filename is None:
        error.filename = str(path)
    elif isinstance(error.filename, str) and error.filename.startswith(str(draft)):
        error.filename = str(path) + error.filename.removeprefix(str(draft))


def sync(path: Path) -> None:
    """Return when the content of a file, or the names in a folder, have reached the disk, see `sync_open`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_open(descriptor)
    finally:
        os.close(descriptor)


def sync_open(descriptor: int) -> None:
    """Return when an open file has reached the disk; at once where the file system cannot tell."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
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
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path, durable=durable) as draft:
        try:
            save_file(dict(tensors), draft, None if metadata is None else dict(metadata))
        except SafetensorError as error:  # what it hides as text: "I/O error: ... (os error 28)"
            match = _OS_ERROR.search(str(error))
            if match is None:
                raise
            raise OSError(int(match[1]), os.strerror(int(match[1])), str(path)) from error
    return path


def follow_umask(folder: Path) -> None:
    """Give every safetensors file in a folder the mode of the umask.

    Libraries of models write them through a private temporary file, which nobody else can read (0600).
    """
    umask = os.umask(0o077)  # it can only be read by setting it
    os.umask(umask)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o666 & ~umask)


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
            # one byte more shows that there is more, whatever size the file system reports
            content = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file", hint=missing_hint) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise UserError(f"{path} has more than {max_bytes:,} bytes, the limit of such a file")
    try:
        value = json.loads(content)
    # thousands of brackets inside each other exhaust the stack of the reader
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


def sampled_sha256(path: Path, *, n_blocks: int = 64, block_bytes: int = 1 << 16) -> str:
    """Return the SHA-256, in hex, of a file's size and of blocks spread evenly over it, its ends among them.

    It tells files apart that were made in different ways, such as the weights of two checkpoints, for the
    price of a few megabytes whatever their size; a change between the blocks escapes it. A file that is no
    larger than its blocks is read whole.

    Args:
        path: The file.
        n_blocks: Number of blocks, at least 2.
        block_bytes: Bytes of each.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(f"{size} ".encode())
        if size <= n_blocks * block_bytes:
            digest.update(file.readall())
            return digest.hexdigest()
        for number in range(n_blocks):
            # from block number to byte: the last block ends where the file does
            file.seek((size - block_bytes) * number // (n_blocks - 1))
            digest.update(file.read(block_bytes))
    return digest.hexdigest()
