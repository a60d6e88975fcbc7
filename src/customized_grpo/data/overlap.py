"""What training rows and held-out rows have in common: subjects by name, and images by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from customized_grpo.data.checked_manifest import CheckedManifest
from customized_grpo.errors import UserError
from customized_grpo.files import file_sha256

SHOWN = 3  # names in a sentence


@dataclass(frozen=True)
class Overlap:
    """What is in the training rows and in the held-out rows.

    Attributes:
        subjects: Names of subjects, sorted.
        images: Held-out image files whose bytes a file of the training rows has as well.
    """

    subjects: tuple[str, ...] = ()
    images: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.subjects or self.images)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, for the run folder."""
        return {"shared_subjects": list(self.subjects), "shared_images": len(self.images)}

    def sentence(self, *, can_be_split: bool = True) -> str:
        """Return what is shared, in words.

        Args:
            can_be_split: Whether subjects could be held out. Who trains on one subject has no other.
        """
        parts = []
        if self.subjects:
            parts.append(f"{_count(self.subjects, 'subject')} ({_listed(self.subjects)})")
        if self.images:
            parts.append(f"{_count(self.images, 'image')} ({_listed(self.images)})")
        return (
            f"the held-out rows share {' and '.join(parts)} with the training rows, so evaluations measure "
            "what was trained on, not new subjects"
            + ("; `cgrpo data convert --held-out` splits by subject" if can_be_split else "")
        )


def find_overlap(train: CheckedManifest, held_out: CheckedManifest) -> Overlap:
    """Compare held-out rows with training rows.

    Files are compared by their digests first, and only those of one digest by all their bytes. The same image
    saved again in another way is not found.

    Raises:
        UserError: A file cannot be read.
    """
    try:
        images = _shared_images(train, held_out)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    return Overlap(tuple(sorted(train.subjects & held_out.subjects)), tuple(images))


def joined(overlaps: Sequence[Overlap]) -> Overlap:
    """Return what held-out rows share with any of several manifests, given what they share with each."""
    subjects: set[str] = set()
    images: dict[str, None] = {}  # an ordered set
    for overlap in overlaps:
        subjects |= set(overlap.subjects)
        images |= dict.fromkeys(overlap.images)
    return Overlap(tuple(sorted(subjects)), tuple(images))


def _shared_images(train: CheckedManifest, held_out: CheckedManifest) -> list[str]:
    keys = _keys(held_out)
    train_keys = _keys(train)
    by_key: dict[int, list[Path]] = {}
    for place in np.flatnonzero(np.isin(train_keys, keys) & ~train.files.is_mask).tolist():
        by_key.setdefault(int(train_keys[place]), []).append(train.folder / train.files.names[place])
    shared = []
    for place in np.flatnonzero(~held_out.files.is_mask).tolist():
        others = by_key.get(int(keys[place]), ())
        file = held_out.folder / held_out.files.names[place]
        # Keys are of samples of a file: equal ones are a suspicion, and the whole file decides.
        if others and file_sha256(file) in {file_sha256(other) for other in others}:
            shared.append(file.name)
    return shared


def _keys(manifest: CheckedManifest) -> NDArray[np.uint64]:
    """Return the beginning of each file's digest as a number, [F]."""
    # eight of 32 bytes: numpy compares numbers fast, and files with equal keys are compared in full
    keys: NDArray[np.uint64] = np.ascontiguousarray(manifest.files.digests[:, :8]).view(np.uint64)[:, 0]
    return keys


def _count(items: Sequence[str], noun: str) -> str:
    return f"{len(items)} {noun}{'s' if len(items) > 1 else ''}"


def _listed(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
