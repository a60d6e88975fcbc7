"""Checks of one row of a manifest, or of a source that becomes one: its JSON, keys, types and paths."""

from __future__ import annotations

import difflib
import json
import os
import re
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

MAX_LINE_BYTES = 1 << 20
KEYS = ("id", "prompt", "references", "masks", "target", "subject", "meta")
REQUIRED = ("id", "prompt", "references")

MAYBE_UNWRITABLE = re.compile(rb"\\u|\d[eE]|\d{300}")
"""What a line must have to hold half a surrogate pair, which UTF-8 has not, or an infinite number."""


class RowProblem(Exception):
    """One mistake in one row of a manifest or of a source that becomes one."""


def parse_line(line: bytes | None) -> dict[str, Any]:
    """Return the object of a line; None stands for a line over the limit.

    Raises:
        RowProblem: It is no object, or holds something that could not be written again.
    """
    if line is None:
        raise RowProblem(f"is longer than {MAX_LINE_BYTES:,} bytes")
    try:
        # json takes the last of two equal keys, and NaN, without a word
        item = json.loads(line.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    # this and JSONDecodeError are ValueErrors too, so they come before it
    except UnicodeDecodeError as error:
        raise RowProblem(f"is not UTF-8 (byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        raise RowProblem(f"is not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise RowProblem("is nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise RowProblem(f"is not JSON: {error}") from error
    if not isinstance(item, dict):
        raise RowProblem(f"is {kind_of(item)}, not an object {{...}}")
    if MAYBE_UNWRITABLE.search(line):
        check_writable(item)
    return item


def check_writable(value: object) -> None:
    """Refuse a JSON value that a manifest cannot hold.

    Raises:
        RowProblem: It has half a surrogate pair, or a number that is not finite: `1e999` is read as infinity.
    """
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise RowProblem("holds half of a surrogate pair, which is not a character") from error
    except ValueError as error:
        raise RowProblem("holds a number that is not finite, which JSON cannot express") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    item: dict[str, Any] = {}
    for key, value in pairs:
        if key in item:
            raise RowProblem(f"has the key {key!r} twice")
        item[key] = value
    return item


def _refuse_constant(name: str) -> None:
    raise RowProblem(f"is not JSON: {name} is no number")


def key_problems(item: dict[str, Any]) -> list[str]:
    """Return the keys that are missing or unknown."""
    problems = [f"lacks `{key}`" for key in REQUIRED if key not in item]
    for key in item:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            advice = f"did you mean `{near[0]}`?" if near else "put it into `meta`"
            problems.append(f"unknown key {key!r}; {advice}")
    return problems


def type_problems(item: dict[str, Any]) -> list[str]:
    """Return the problems with the values of known keys; null stands for an absent optional key.

    `references` may be an empty list, which says that a row is text alone; it may not be left out.
    """
    problems = []
    for key in ("id", "prompt", "target", "subject"):
        value = item.get(key)
        # null stands for "not given" where a key may be left out.
        if key in item and (value is not None or key in REQUIRED):
            if not isinstance(value, str):
                problems.append(f"`{key}` must be a string, not {kind_of(value)}")
            elif not value.strip():
                problems.append(f"`{key}` is empty")
    for key in ("references", "masks"):
        value = item.get(key)
        if key in item and (value is not None or key in REQUIRED):
            if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
                problems.append(f"`{key}` must be a list of paths")
            elif not value and key == "masks":
                problems.append("`masks` is an empty list")
    meta = item.get("meta")
    if meta is not None and not isinstance(meta, dict):
        problems.append(f"`meta` must be an object, not {kind_of(meta)}")
    references = item.get("references")
    masks = item.get("masks")
    if isinstance(references, list) and isinstance(masks, list) and masks and len(masks) != len(references):
        problems.append(f"has {len(masks)} masks for {len(references)} references")
    return problems


def resolve_path(folder: Path, key: str, name: str) -> Path:
    """Return the absolute path of a file that really lies inside the folder.

    In the cache of the Hugging Face hub every file is a link from `REPO/snapshots/REVISION` into
    `REPO/blobs`, which is where a file may lie as well.

    Args:
        folder: Resolved folder that paths are relative to.
        key: What the path is in its row, for the message.
        name: The path as the row has it.

    Raises:
        RowProblem: The path is absolute, contains `..`, leaves the folder by a link, or is no regular file.
    """
    # `C:\a.jpg` is a relative path on Linux
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
        raise RowProblem(f"`{key}`: {name!r} is absolute; paths are relative to {folder}")
    if ".." in PureWindowsPath(name).parts:  # splits at both kinds of slash
        raise RowProblem(f"`{key}`: {name!r} contains `..`")
    if not is_utf8(name):
        raise RowProblem(
            f"`{key}`: the file name {name!r} is not UTF-8, which a manifest is; rename the file "
            "(`convmv -f gbk -t utf8 -r --notest FOLDER` for names from a Chinese Windows)"
        )
    path = folder / name
    try:
        resolved = path.resolve()
        if not _is_inside(resolved, folder):
            raise RowProblem(
                f"`{key}`: {name!r} is a link that leaves {folder}; copy the files themselves (cp -rL)"
            )
        exists = resolved.exists()
        is_regular = resolved.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL byte, a name too long
        raise RowProblem(f"`{key}`: {name!r} is no usable path: {error}") from error
    if not exists:
        raise RowProblem(f"`{key}`: {name!r} does not exist{_other_spelling(folder, name)}")
    if not is_regular:
        raise RowProblem(f"`{key}`: {name!r} is not a regular file")
    # not the resolved one: in the hub's cache that is a blob, named by a hash
    return path


def is_utf8(name: str) -> bool:
    """Return whether a name from the disk is text: bytes that are not UTF-8 are read as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_inside(resolved: Path, folder: Path) -> bool:
    if resolved.is_relative_to(folder):
        return True
    for parent in folder.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith(("datasets--", "models--")):
            return resolved.is_relative_to(parent.parent / "blobs")
    return False


def _other_spelling(folder: Path, name: str) -> str:
    """Return how the file of a missing name is spelt, if it is there under a name that looks the same."""
    if "\\" in name and os.path.isfile(folder / name.replace("\\", "/")):
        return "; with `/` in place of each backslash it does"
    for form in ("NFC", "NFD"):
        if os.path.isfile(folder / unicodedata.normalize(form, name)):
            return (
                f"; a file whose name looks the same does (its accents are stored as Unicode {form}): write "
                "the name as it is on the disk"
            )
    return ""


def kind_of(value: object) -> str:
    """Return the type of a JSON value with its article, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
