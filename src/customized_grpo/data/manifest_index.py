"""The index beside a manifest: what a whole check of it found, so that the next start need not decode again.

It is a safetensors file of arrays and texts, nothing in it is run, and it is taken for true only if manifest,
checking code and every file are what they were. Rows are never read from it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from customized_grpo import __version__
from customized_grpo.data.file_table import FileTable
from customized_grpo.files import replacing

CHECKS = f"3, customized-grpo {__version__}, Pillow {PIL.__version__}"
"""Format of the index and what checked the files: another version may see mistakes that this one did not."""

ARRAYS: Mapping[str, tuple[type[Any], tuple[int, ...]]] = {
    "is_mask": (np.bool_, ()),
    "is_reference": (np.bool_, ()),
    "stamps": (np.int64, (3,)),
    "sizes": (np.int32, (2,)),
    "boxes": (np.int32, (4,)),
    "digests": (np.uint8, (32,)),
}
"""Arrays of an index: type, and shape of each file's entry."""

TEXTS = ("names", "subjects")
_SEPARATOR = "\0"  # in no file name; in subjects it is told apart by JSON


@dataclass(frozen=True)
class ManifestIndex:
    """The result of a whole check.

    Attributes:
        manifest: SHA-256 of the manifest.
        has_masks: Whether every row has masks.
        n_bare: Rows without references.
        subjects: Subjects of the rows, each once.
        fingerprint: Number of rows with a digest of their texts, and the same of their images.
        files: All files of the rows.
        places: Place in `files` of the references, masks and target of each row, row by row.
    """

    manifest: str
    has_masks: bool
    n_bare: int
    subjects: frozenset[str]
    fingerprint: Mapping[str, str]
    files: FileTable
    places: NDArray[np.int32]


def index_path(manifest: Path) -> Path:
    """Return where the index of a manifest is kept: hidden, beside it."""
    return manifest.with_name(f".{manifest.name}.index")


def write_index(path: Path, index: ManifestIndex) -> None:
    """Write an index in one step.

    Raises:
        OSError: The disk refuses.
    """
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(getattr(index.files, name)) for name in ARRAYS}
    arrays["places"] = np.ascontiguousarray(index.places)
    arrays["names"] = _packed(_SEPARATOR.join(index.files.names))
    arrays["subjects"] = _packed(json.dumps(sorted(index.subjects)))
    # safetensors takes texts only as metadata
    metadata = {
        "checks": CHECKS,
        "manifest": index.manifest,
        "has_masks": json.dumps(index.has_masks),
        "n_bare": str(index.n_bare),
        **{f"fingerprint.{name}": text for name, text in index.fingerprint.items()},
    }
    content = save(arrays, metadata)
    with replacing(path) as draft:
        draft.write_bytes(content)


def read_index(path: Path, *, max_bytes: int) -> ManifestIndex | None:
    """Return an index; None if there is none, it is damaged, or other code wrote it.

    Args:
        path: Its file; a link is not followed.
        max_bytes: Limit of its size.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # before it is opened: opening a pipe would wait for ever, and a file of any size would be mapped
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            return None
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in (*ARRAYS, *TEXTS, "places")}
        return _from_arrays(metadata, arrays) if metadata.get("checks") == CHECKS else None
    # OSError: none, or unreadable; the others: what was written by anybody else
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError):
        return None


def _from_arrays(metadata: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> ManifestIndex:
    """Return the index of the parts of a file.

    Raises:
        KeyError, ValueError, TypeError: They are not those of an index.
    """
    text = _unpacked(arrays["names"])
    # only ever asked for their size and age, but that shall stay inside of the folder as well
    if text.startswith("/") or f"{_SEPARATOR}/" in text or "../" in text:
        raise ValueError("a name leads out of the folder")
    names = text.split(_SEPARATOR) if text else []
    for name, (dtype, shape) in ARRAYS.items():
        # The file may be anybody's: a wrong shape would be read as other files' data.
        if arrays[name].dtype != dtype or arrays[name].shape != (len(names), *shape):
            raise ValueError(f"{name} has another type or shape")
    places = arrays["places"]
    if places.dtype != np.int32 or places.ndim != 1 or not ((places >= 0) & (places < len(names))).all():
        raise ValueError("a row has a file that is not there")
    subjects = json.loads(_unpacked(arrays["subjects"]))
    if not isinstance(subjects, list) or not all(isinstance(subject, str) for subject in subjects):
        raise TypeError("subjects are no list of texts")
    return ManifestIndex(
        manifest=metadata["manifest"],
        has_masks=json.loads(metadata["has_masks"]) is True,
        n_bare=int(metadata["n_bare"]),
        subjects=frozenset(subjects),
        fingerprint={name: metadata[f"fingerprint.{name}"] for name in ("rows", "images")},
        files=FileTable(names, **{name: arrays[name] for name in ARRAYS}),
        places=places,
    )


def _packed(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def _unpacked(array: NDArray[Any]) -> str:
    if array.dtype != np.uint8:
        raise TypeError("a text is not of bytes")
    return array.tobytes().decode()
