"""ToyBox as files: a manifest with images, masks, targets and prompts, for the ordinary data loader."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from PIL import Image

from customized_grpo.data.manifest import Row, write_manifest
from customized_grpo.errors import UserError
from customized_grpo.files import is_free, new_folder
from customized_grpo.pixels import to_array, to_uint8
from customized_grpo.toybox.source import ToyBoxSource

PROMPTS_PER_SUBJECT = 2


def export_manifest(folder: Path, subjects: int, seed: int) -> Path:
    """Write `manifest.jsonl` and its images into a new or empty folder; return the path of the manifest.

    Raises:
        UserError: The folder already holds something.
        OSError: The disk refuses; the folder is then as it was.
    """
    if not is_free(folder):
        raise UserError(f"{folder} already exists and is not an empty folder", hint="Name a new folder.")
    with new_folder(folder) as draft:
        rows = _write_images(draft, ToyBoxSource(subjects, PROMPTS_PER_SUBJECT, seed, "train"))
        write_manifest(draft / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


def _write_images(folder: Path, source: ToyBoxSource) -> list[Row]:
    """Write the images of every row; return the rows."""
    (folder / "images").mkdir()
    rows = []
    for index in range(len(source)):
        example = source[index]
        assert example.masks is not None and example.target is not None
        paths = {
            part: folder / "images" / f"{example.id}-{part}.png" for part in ("reference", "mask", "target")
        }
        _save(paths["reference"], example.references[0])
        _save(paths["mask"], example.masks[0])
        _save(paths["target"], example.target)
        rows.append(
            Row(
                id=example.id,
                prompt=example.prompt,
                references=(paths["reference"],),
                masks=(paths["mask"],),
                target=paths["target"],
                subject=example.subject,
                meta={"scene": dataclasses.asdict(example.meta["scene"])},
            )
        )
    return rows


def _save(path: Path, image: torch.Tensor) -> None:
    Image.fromarray(to_array(to_uint8(image))).save(path)
