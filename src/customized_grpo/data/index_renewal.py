"""An index some of whose files have changed: those are opened again, and no line is read.

The rows are those of the same manifest to the byte, so that only what is known of these files can be wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from customized_grpo.data.file_table import NO_BOX, FileTable, OpenedFile, open_files
from customized_grpo.data.fingerprint import images_text
from customized_grpo.data.image_info import ImageInfo
from customized_grpo.data.manifest_index import ManifestIndex
from customized_grpo.data.row_checks import RowProblem
from customized_grpo.data.row_paths import RowPaths

_HEX = 64  # digits of a file's digest
_Number = TypeVar("_Number", bound=np.generic)


def reopen(
    folder: Path, files: FileTable, places: Sequence[int], on_file: Callable[[], None]
) -> list[OpenedFile] | None:
    """Decode files of an index again; None if a path is none any more, which its row has to tell.

    Args:
        folder: Resolved folder of the manifest.
        files: Those of the index.
        places: Which of them.
        on_file: Called after every file.
    """
    paths = RowPaths(folder)
    named = []
    for place in places:
        try:
            # a file may have become a link that leads out of the folder
            named.append((paths.resolve("file", files.names[place]), bool(files.is_mask[place])))
        except RowProblem:
            return None
    return open_files(named, on_file)


def renew(index: ManifestIndex, places: Sequence[int], opened: Sequence[OpenedFile]) -> ManifestIndex | None:
    """Return an index with what was found of files that had changed; None if a row may be wrong now.

    Args:
        index: What was known.
        places: Which of its files were opened again.
        opened: What was found of them, in the same order.
    """
    infos = [file.info for file in opened if isinstance(file.info, ImageInfo)]
    if len(infos) < len(opened):
        return None
    old = index.files
    rows = np.asarray(places, np.int64)
    sizes = np.array([info.size for info in infos], np.int32)
    # which mask belongs to which reference is written in the rows alone
    if old.is_mask.any() and (old.sizes[rows] != sizes).any():
        return None
    digests = np.frombuffer(b"".join(file.digest for file in opened), np.uint8).reshape(-1, 32)
    files = dataclasses.replace(
        old,
        stamps=_with(old.stamps, rows, np.array([file.stamp for file in opened], np.int64)),
        sizes=_with(old.sizes, rows, sizes),
        boxes=_with(old.boxes, rows, np.array([info.box or NO_BOX for info in infos], np.int32)),
        digests=_with(old.digests, rows, digests),
    )
    fingerprint = {**index.fingerprint, "images": files_text(files, index.places)}
    return dataclasses.replace(index, files=files, fingerprint=fingerprint)


def files_text(files: FileTable, places: NDArray[np.int32]) -> str:
    """Return the fingerprint of the files of rows, see `images_text`.

    Args:
        files: All files.
        places: Place of the references, masks and target of each row, row by row.
    """
    text = files.digests.tobytes().hex()
    digests = [text[start : start + _HEX] for start in range(0, len(text), _HEX)]
    return images_text(places.tolist(), digests, len(set(files.names)))


def _with(array: NDArray[_Number], rows: NDArray[np.int64], new: NDArray[_Number]) -> NDArray[_Number]:
    """Return a copy of an array with other rows."""
    # A copy, because the old index may still be in use, and its arrays may be read only.
    changed = array.copy()
    changed[rows] = new
    return changed
