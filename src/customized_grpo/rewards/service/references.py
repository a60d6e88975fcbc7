"""References that clients uploaded, by sha256; bounded, those that were not used for longest go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class ReferenceStore:
    """PNG files by hash, compressed as they came. Used by one event loop, so without locks.

    Args:
        capacity: Bytes kept in all.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._files: OrderedDict[str, bytes] = OrderedDict()

    def put(self, sha256: str, png: bytes) -> bool:
        """Keep a file; False if it is larger than the whole store."""
        if len(png) > self.capacity:
            return False
        if sha256 not in self._files:
            self._files[sha256] = png
            self.size += len(png)
        self._files.move_to_end(sha256)
        while self.size > self.capacity:
            self.size -= len(self._files.popitem(last=False)[1])
        return True

    def missing(self, wanted: Iterable[str]) -> list[str]:
        """Return those that are not here, each once; those that are count as used now."""
        absent = []
        for sha256 in dict.fromkeys(wanted):
            if sha256 in self._files:
                self._files.move_to_end(sha256)
            else:
                absent.append(sha256)
        return absent

    def get(self, sha256: str) -> bytes:
        """Return a file that is here."""
        return self._files[sha256]
