"""The files in the folder of a subject: its photos, their masks, and what systems and tools leave there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PHOTO_ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".avif", ".heic", ".heif", ".hif",
)  # fmt: skip
UNREAD_ENDINGS = (
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".raw", ".psd", ".xcf", ".jxl", ".jp2",
    ".svg", ".eps", ".pdf", ".tga", ".ico",
)  # fmt: skip
"""Endings of photos and drawings that must be exported first; Pillow takes a raw photo for its thumbnail."""

MASK_ENDING = ".mask.png"
CLASS_FILE = "class.txt"
"""File that says what a subject is, for the prompts of `folder`."""

_CLUTTER = frozenset(
    {
        "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin",
        "system volume information", "lost+found",
    }
)  # fmt: skip
"""Names, in lower case, of what zip, Windows and NAS boxes leave; hidden files are clutter as well."""


@dataclass(frozen=True)
class SubjectFolder:
    """The files of a subject.

    Attributes:
        photos: Files named like images, in the order of their names; none has been opened.
        masks: Mask of a photo, by the photo.
        problems: What the user meant as a photo or mask, but cannot be taken as one.
        ignored: Kind of every other file and folder.
    """

    photos: list[Path]
    masks: dict[Path, Path]
    problems: list[str]
    ignored: list[str]


def is_clutter(path: Path) -> bool:
    """Return whether a file or folder was left by a system or tool: `._01.jpg`, `.ipynb_checkpoints`, ..."""
    return path.name.startswith(".") or path.name.lower() in _CLUTTER


def read_subject_folder(folder: Path, beside: str | None = None) -> SubjectFolder:
    """Sort the files of a subject by their names.

    Args:
        folder: Of the subject.
        beside: Ending of files that belong to the photos and are not counted as ignored.
    """
    photos: list[Path] = []
    mask_files: list[Path] = []
    problems: list[str] = []
    ignored: list[str] = []
    for path in sorted(folder.iterdir()):
        ending = path.suffix.lower()
        if is_clutter(path):
            ignored.append("files of systems and tools (hidden, Thumbs.db, ...)")
        elif path.is_dir():
            ignored.append("folders inside a subject's folder")
        elif path.name.endswith(MASK_ENDING):
            mask_files.append(path)
        elif Path(path.stem).suffix == ".mask" and ending in PHOTO_ENDINGS:
            problems.append(f"{path} is named like a mask; masks are called NAME{MASK_ENDING}")
        elif ending in PHOTO_ENDINGS:
            photos.append(path)
        elif ending in UNREAD_ENDINGS:
            problems.append(f"{path} cannot be read; export it as JPEG or PNG")
        elif path.name != CLASS_FILE and ending != beside:
            ignored.append(f"files that are no images ({ending or 'without ending'})")
    stems = {photo.stem for photo in photos}
    for photo in list(photos):
        if photo.stem[-5:] in ("_mask", "-mask") and photo.stem[:-5] in stems:
            problems.append(f"{photo} is named like a mask; masks are called {photo.stem[:-5]}{MASK_ENDING}")
            photos.remove(photo)
    masks = {photo: photo.with_suffix(MASK_ENDING) for photo in photos}
    masks = {photo: mask for photo, mask in masks.items() if mask in mask_files}
    ignored += ["masks without a photo"] * len(set(mask_files) - set(masks.values()))
    return SubjectFolder(photos, masks, problems, ignored)


def find_photos(folder: Path) -> tuple[Path, ...]:
    """Return the photos of a subject in the order of their names; none if there is no such folder."""
    return tuple(read_subject_folder(folder).photos) if folder.is_dir() else ()


def next_of(items: Iterable[Path], item: Path, taken: Iterable[Path]) -> Path | None:
    """Return the item after another one, in a circle, that is not taken; None if all are."""
    ring = list(items)
    start = ring.index(item) + 1 if item in ring else 0
    for other in (*ring[start:], *ring[:start]):
        if other not in taken:
            return other
    return None
