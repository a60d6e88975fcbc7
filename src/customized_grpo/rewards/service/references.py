"""References that clients uploaded, by sha256, within a bound of bytes."""

from __future__ import annotations

from collections.abc import Iterable

from cachetools import LRUCache


class ReferenceStore:
    """LRU cache of PNG files by hash, as they were uploaded. Used by one event loop, so without locks.

    Args:
        capacity: Bytes kept in all.
    """

    def __init__(self, capacity: int) -> None:
        self._files: LRUCache[str, bytes] = LRUCache(capacity, getsizeof=len)

    @property
    def size(self) -> int:
        """Bytes that are stored."""
        return int(self._files.currsize)

    def put(self, sha256: str, png: bytes) -> bool:
        """Store a file; return False if it is larger than the whole store."""
        if len(png) > self._files.maxsize:
            return False
        self._files[sha256] = png
        return True

    def missing(self, hashes: Iterable[str]) -> list[str]:
        """Return the hashes that are not stored, each once; the others count as used now."""
        # `get` and not `in`, which would not count as a use.
        return [sha256 for sha256 in dict.fromkeys(hashes) if self._files.get(sha256) is None]

    def get(self, sha256: str) -> bytes:
        """Return a stored file.

        Raises:
            KeyError: It is not stored.
        """
        return self._files[sha256]
