"""What training rows and held-out rows have in common: subjects by name, and images by content."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from customized_grpo.data.manifest import Row
from customized_grpo.data.split import subject_of
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

    def sentence(self) -> str:
        """Return what is shared, in words."""
        parts = []
        if self.subjects:
            parts.append(f"{_count(self.subjects, 'subject')} ({_listed(self.subjects)})")
        if self.images:
            parts.append(f"{_count(self.images, 'image')} ({_listed(self.images)})")
        return (
            f"the held-out rows share {' and '.join(parts)} with the training rows, so evaluations measure "
            "what was trained on, not new subjects; `cgrpo data convert --held-out` splits by subject"
        )


def find_overlap(train: Sequence[Row], held_out: Sequence[Row]) -> Overlap:
    """Compare held-out rows with training rows.

    Files are compared by size first, and only those of one size by all their bytes. The same image saved
    again in another way is not found.

    Raises:
        UserError: A file cannot be read.
    """
    subjects = {subject_of(row) for row in train} & {subject_of(row) for row in held_out}
    try:
        images = _shared_images(_images(train), _images(held_out))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    return Overlap(tuple(sorted(subjects)), tuple(images))


def _shared_images(train: Iterable[Path], held_out: Iterable[Path]) -> list[str]:
    by_size = _by_size(train)
    digests: dict[int, set[str]] = {}
    shared = []
    for file in held_out:
        size = file.stat().st_size
        if size not in digests:
            digests[size] = {file_sha256(other) for other in by_size.get(size, ())}
        if digests[size] and file_sha256(file) in digests[size]:
            shared.append(file.name)
    return shared


def _images(rows: Sequence[Row]) -> Iterable[Path]:
    """Return every image of the rows once, in their order."""
    files: dict[Path, None] = {}
    for row in rows:
        targets = () if row.target is None else (row.target,)
        files |= dict.fromkeys((*row.references, *targets))
    return files


def _by_size(files: Iterable[Path]) -> dict[int, list[Path]]:
    sizes: dict[int, list[Path]] = {}
    for file in files:
        sizes.setdefault(file.stat().st_size, []).append(file)
    return sizes


def _count(items: Sequence[str], noun: str) -> str:
    return f"{len(items)} {noun}{'s' if len(items) > 1 else ''}"


def _listed(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
