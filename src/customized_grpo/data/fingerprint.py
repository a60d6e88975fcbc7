"""A fingerprint of the rows of a manifest and of the files that they name.

An image counts by its size in bytes and by its beginning, middle and end: another image, or the same one
saved again, differs in them.
File names do not count: a data set may be moved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from customized_grpo.data.manifest import Row

SHOWN = 16  # hex digits of a digest, which is only ever compared


class RowDigest:
    """A digest of the texts of rows, which are added one by one."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._count = 0

    def add(self, row: Row) -> None:
        """Add the next row."""
        counts = [len(row.references), len(row.masks), row.target is not None]
        # JSON keeps the parts apart: joined texts would be equal for "ab", "c" and "a", "bc"
        self._digest.update(json.dumps([row.id, row.prompt, row.subject, dict(row.meta), counts]).encode())
        self._count += 1

    def text(self) -> str:
        """Return the number of rows with their digest."""
        return f"{self._count} rows, {self._digest.hexdigest()[:SHOWN]}"


def images_text(places: Iterable[int], digests: Sequence[str], n_files: int) -> str:
    """Return the number of different files with a digest of their bytes.

    Args:
        places: Place in `digests` of the references, masks and target of each row, row by row.
        digests: Digest of each file, in hex.
        n_files: Number of different files.
    """
    digest = hashlib.sha256()
    for place in places:
        digest.update(digests[place].encode())
    return f"{n_files} files, {digest.hexdigest()[:SHOWN]}"
