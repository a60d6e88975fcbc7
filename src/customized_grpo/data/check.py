"""Checks a data set before it is trained on: a manifest with its held-out part, or a published layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from customized_grpo.data.image_info import ImageInfo, ImageInspector
from customized_grpo.data.manifest import Row, scan_manifest
from customized_grpo.data.split import subject_of
from customized_grpo.data.survey import Entry, Survey, survey
from customized_grpo.errors import UserError

# as `cgrpo data convert --held-out` names them
PARTS = ("train.jsonl", "held_out.jsonl")
WHOLE = "manifest.jsonl"


def find_manifests(path: Path) -> list[Path]:
    """Return a manifest, or those of a folder: train.jsonl and held_out.jsonl, else manifest.jsonl.

    Raises:
        UserError: The folder has none.
    """
    if not path.is_dir():
        return [path]
    # A split data set holds manifest.jsonl as well, with the same rows once more.
    parts = [path / name for name in PARTS if (path / name).is_file()]
    if parts:
        return parts
    if (path / WHOLE).is_file():
        return [path / WHOLE]
    raise UserError(
        f"{path} has no {WHOLE}",
        hint="Name a manifest, or say which published layout the folder has: --layout dreambench.",
    )


def check_manifests(
    manifests: Sequence[Path], *, require_masks: bool, size: tuple[int, int] | None = None
) -> Survey:
    """Read manifests as training would, and compare them with each other.

    Args:
        manifests: Parts of one data set, which must not share subjects or images.
        require_masks: Whether a row without masks is a problem.
        size: Height and width of the images that references shall be cut to, in pixels; None: nothing is cut.

    Raises:
        UserError: A manifest cannot be read.
    """
    # one for all parts: a file that two parts name is decoded once
    inspector = ImageInspector(digests=True)
    problems: list[str] = []
    entries: list[Entry] = []
    for manifest in manifests:
        scan = scan_manifest(manifest, inspector, require_masks=require_masks)
        problems += [f"{manifest.name} line {number}: {problem}" for number, problem in scan.problems]
        if not scan.rows and not scan.problems:
            problems.append(f"{manifest.name} holds no rows")
        for number, row in scan.rows:
            entries.append(_entry(inspector, f"{manifest.name} line {number}", manifest.name, row))
    return survey(entries, problems, size=size)


def _entry(inspector: ImageInspector, where: str, split: str, row: Row) -> Entry:
    return Entry(
        where=where,
        split=split,
        prompt=row.prompt,
        subject=subject_of(row),
        references=tuple(_known(inspector, file) for file in row.references),
        has_masks=bool(row.masks),
        target=None if row.target is None else _known(inspector, row.target),
    )


def _known(inspector: ImageInspector, file: Path) -> ImageInfo:
    """Return the info of an image of a good row, all of which could be decoded."""
    info = inspector.image(file)
    assert isinstance(info, ImageInfo)
    return info
