"""Sample images of a run: tensors to PNG, and the `samples/` folder with its index.

samples/index.json               {"rows": [{"prompt", "subject", "reference", "target"}], "iterations": [0]}
samples/reference_00.png         row 0's reference, in the pixels that the model sees; further ones are
                                 reference_00_1.png, ...
samples/target_00.png            another true view of row 0's subject, if known
samples/iteration_000010/00.png  what the model drew for row 0 after 10 iterations (0 = base)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from customized_grpo.files import read_json, replacing, write_json
from customized_grpo.pixels import to_pil

INDEX = "index.json"
ITERATION = "iteration_"
"""Beginning of the name of a folder with the images of one evaluation."""


@dataclass(frozen=True)
class SampleRow:
    """One prompt that is drawn again and again, to be compared over the run.

    Attributes:
        prompt: The prompt.
        references: The reference images as the model sees them, each [3, H, W] in [0, 1].
        subject: The subject's name or class, if it has one.
        target: A true image of the subject in the prompted scene, [3, H, W] in [0, 1], if there is one.
    """

    prompt: str
    references: Sequence[torch.Tensor]
    subject: str | None = None
    target: torch.Tensor | None = None


def save_image(path: Path, image: torch.Tensor) -> Path:
    """Write one image [3, H, W] as PNG, creating its folder; returns `path`."""
    return _save(path, to_pil(image))


def start_samples(folder: Path, rows: Sequence[SampleRow]) -> None:
    """Write references, targets and index. Iterations already drawn stay listed (a resumed run)."""
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, str | None]] = []
    for number, row in enumerate(rows):
        names = []
        for place, image in enumerate(row.references):
            # The first has no number, because most rows have one reference only.
            ending = f"_{place}" if place else ""
            names.append(save_image(folder / f"reference_{number:02d}{ending}.png", image).name)
        target = None
        if row.target is not None:
            target = save_image(folder / f"target_{number:02d}.png", row.target).name
        entries.append(
            {
                "prompt": row.prompt,
                "subject": row.subject,
                "reference": names[0] if names else None,
                "target": target,
            }
        )
    # the index last, here and below: it must never list an image that is not there yet
    write_json(folder / INDEX, {"rows": entries, "iterations": _drawn(folder, len(rows))})


def _drawn(folder: Path, n_rows: int) -> list[int]:
    """Return the iterations with an image of every row, by their folders: the index may be damaged."""
    iterations = []
    for path in folder.glob(f"{ITERATION}*"):
        number = path.name.removeprefix(ITERATION)
        if number.isdecimal() and len(list(path.glob("[0-9][0-9].png"))) == n_rows:
            iterations.append(int(number))
    return sorted(iterations)


def save_samples(folder: Path, iteration: int, images: torch.Tensor) -> list[Path]:
    """Write what the model draws for every row after `iteration` iterations and list it in the index.

    Args:
        folder: The run's `samples` folder, after `start_samples`.
        iteration: Finished iterations; 0 is the base model.
        images: [rows, 3, H, W] in [0, 1], in the order of the rows.

    Raises:
        ValueError: The number of images is not the number of rows.
    """
    index = read_json(folder / INDEX)
    if images.ndim != 4 or len(images) != len(index["rows"]):
        raise ValueError(f"{len(index['rows'])} rows need as many images, not {tuple(images.shape)}")
    target = folder / f"{ITERATION}{iteration:06d}"
    paths = [save_image(target / f"{number:02d}.png", image) for number, image in enumerate(images)]
    iterations = sorted({*index["iterations"], iteration})
    write_json(folder / INDEX, {"rows": index["rows"], "iterations": iterations})
    return paths


def _save(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        image.save(draft, format="PNG")
    return path
