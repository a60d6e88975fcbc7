"""What is known of the files of a manifest, in arrays: a million files take a hundred bytes each."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from customized_grpo.data.image_info import ImageInfo, ImageInspector
from customized_grpo.files import sampled_sha256

N_BLOCKS = 3
BLOCK_BYTES = 4096
"""Of every file its beginning, middle and end go into its digest."""

RECENT_NS = 2_000_000_000
"""Age up to which the times of a file do not tell it from a later version: clocks of disks tick rarely."""

MAX_THREADS = 8
"""Files that are opened at the same time; decoding the largest takes up to 450 MB."""

TOGETHER = 64
"""Files that are handed out to the threads at once."""

STAMP = 3
NO_BOX = (-1, -1, -1, -1)
UNKNOWN = (-1, -1, -1)

Stamps = NDArray[np.int64]


@dataclass(frozen=True)
class FileTable:
    """The files of a manifest in the order of their first appearance; F of them.

    A file that serves as an image and as a mask is there twice.

    Attributes:
        names: Paths from the manifest's folder.
        is_mask: Whether each is a mask, [F].
        is_reference: Whether each is a reference of some row, [F].
        stamps: Bytes, time of the last change and time of the last change of its entry on the disk (ns)
            when it was opened, [F, 3]; UNKNOWN if they could not tell it from a later version. Nobody can
            set the last one, so a file that was copied, unpacked or tampered with never looks known.
        sizes: Width and height, [F, 2].
        boxes: Box of what a mask marks, as in `ImageInfo`, [F, 4]; NO_BOX without.
        digests: `sampled_sha256` of its bytes, [F, 32].
    """

    names: list[str]
    is_mask: NDArray[np.bool_]
    is_reference: NDArray[np.bool_]
    stamps: Stamps
    sizes: NDArray[np.int32]
    boxes: NDArray[np.int32]
    digests: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.names)

    def info(self, file: int) -> ImageInfo:
        """Return the info of a file."""
        left, top, right, bottom = self.boxes[file].tolist()
        width, height = self.sizes[file].tolist()
        return ImageInfo((width, height), box=None if left < 0 else (left, top, right, bottom))

    def unchanged(self, folder: Path) -> NDArray[np.bool_]:
        """Return which files are surely those that were opened, [F]."""
        now = read_stamps([f"{folder}/{name}" for name in self.names])
        # A stamp below 0 is unknown, and two unknown ones prove nothing.
        unchanged: NDArray[np.bool_] = (now == self.stamps).all(axis=1) & (self.stamps >= 0).all(axis=1)
        return unchanged


def read_stamps(files: Sequence[str]) -> Stamps:
    """Return the stamps of files, [N, 3]; UNKNOWN for what is no regular file."""
    # one task per file would cost more than the stat itself
    chunks = [files[start : start + 4096] for start in range(0, len(files), 4096)]
    with ThreadPoolExecutor(MAX_THREADS) as pool:  # on a network disk every answer takes a while
        stamps = list(pool.map(_stamps, chunks))
    return np.concatenate(stamps) if stamps else np.empty((0, STAMP), np.int64)


def _stamps(files: Sequence[str]) -> Stamps:
    return np.array([_stamp(file) for file in files], np.int64)


def _stamp(file: str) -> tuple[int, int, int]:
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return UNKNOWN
    if not stat.S_ISREG(status.st_mode):
        return UNKNOWN
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True)
class OpenedFile:
    """A file that was opened.

    Attributes:
        info: What was found, or the reason why the file cannot be used.
        stamp: Its stamp from before that.
        digest: Its digest.
    """

    info: ImageInfo | str
    stamp: tuple[int, int, int] = UNKNOWN
    digest: bytes = bytes(32)


def _open_file(named: tuple[Path, bool]) -> OpenedFile:
    """Decode a file, which may be a mask; what changes it from now on is seen by its stamp."""
    file, is_mask = named
    # before decoding: a change in between then shows as another stamp, not as an unchanged file
    stamp = _stamp(str(file))
    # a size in bytes is far below a time in ns, so the maximum is the later time; the future counts as recent
    if time.time_ns() - max(stamp) < RECENT_NS:
        stamp = UNKNOWN
    inspector = ImageInspector()
    info = inspector.mask(file) if is_mask else inspector.image(file)
    if isinstance(info, str):
        return OpenedFile(info)
    try:
        digest = sampled_sha256(file, n_blocks=N_BLOCKS, block_bytes=BLOCK_BYTES)
    except OSError as error:
        return OpenedFile(f"{file} cannot be read: {error.strerror}")
    return OpenedFile(info, stamp, bytes.fromhex(digest))


def open_files(
    files: Sequence[tuple[Path, bool]], on_file: Callable[[], None] = lambda: None
) -> list[OpenedFile]:
    """Decode files, several at a time; Pillow decodes without Python's lock.

    Args:
        files: Path, and whether it is a mask, of each.
        on_file: Called after every file.
    """
    opened = []
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(files), TOGETHER):  # Ctrl-C waits for those that were handed out
            for one in pool.map(_open_file, files[start : start + TOGETHER]):
                opened.append(one)
                on_file()
    return opened
