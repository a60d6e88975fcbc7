"""The pictures of a benchmark: one PNG each, made once, and never of two models in one folder.

OUT/pictures/ID-00.png   written under another name first, so a name is always a whole picture
OUT/pictures.json        what the pictures depend on; another model or setting is refused
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import Tensor

from customized_grpo.benchmarks.protocol import GeneratorStamp, PictureProtocol, differences
from customized_grpo.benchmarks.rows import BenchmarkRow
from customized_grpo.data.images import open_image
from customized_grpo.errors import UserError
from customized_grpo.files import replacing, write_json
from customized_grpo.pixels import to_pil

Drawing = tuple[BenchmarkRow, int]
"""A row and the number of one of its pictures, from 0."""

Draw = Callable[[Sequence[BenchmarkRow]], Iterable[Tensor]]
"""Draws all pictures [3, H, W] of each row in turn; each depends on its row's id and its number alone."""

STAMP = "pictures.json"
MAX_NAME = 120  # characters of an id in a file name; longer ones are shortened and told apart by a hash


class PictureFolder:
    """The folder of one benchmark's pictures by one generator.

    Args:
        path: The folder.
        protocol: What the pictures depend on.
        generator: Which model draws them.
    """

    def __init__(self, path: Path, protocol: PictureProtocol, generator: GeneratorStamp) -> None:
        self.path, self.protocol, self.generator = path, protocol, generator

    def claim(self) -> None:
        """Put the stamp into the folder, or check the one that is there.

        Raises:
            UserError: The folder has pictures of another model or setting, or cannot be written.
        """
        stamp: dict[str, Any] = {**asdict(self.protocol), "weights": self.generator.weights}
        file = self.path / STAMP
        try:
            if file.is_file():
                found = json.loads(file.read_text(encoding="utf-8"))
                if different := differences(found, stamp):
                    raise UserError(
                        f"{self.path} holds pictures made otherwise (there, now):\n  "
                        + "\n  ".join(different),
                        "Choose another --out, or delete the folder.",
                    )
                return
            (self.path / "pictures").mkdir(parents=True, exist_ok=True)
            write_json(file, stamp)
        except ValueError as error:
            raise UserError(f"{file}: not JSON ({error})", "Delete the folder and start again.") from error
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path}: {error.strerror}", "Choose another --out."
            ) from error

    def file(self, drawing: Drawing) -> Path:
        """Return where a picture lies."""
        row, number = drawing
        name = quote(row.id, safe=" ")
        if len(name) > MAX_NAME:
            name = f"{name[: MAX_NAME - 17]}-{hashlib.sha256(row.id.encode()).hexdigest()[:16]}"
        return self.path / "pictures" / f"{name}-{number:02d}.png"

    def is_whole(self, drawing: Drawing) -> bool:
        """Return whether a picture is there, can be decoded and has the right size."""
        file = self.file(drawing)
        if not file.is_file():
            return False
        try:
            size = open_image(file).size
        except UserError:
            return False
        return size == (self.protocol.width, self.protocol.height)

    def write(self, drawing: Drawing, image: Tensor) -> None:
        """Write a picture [3, H, W] so that a kill leaves none or all of it."""
        file = self.file(drawing)
        with replacing(file) as draft:
            to_pil(image).save(draft, format="PNG")


def generate(
    folder: PictureFolder,
    rows: Sequence[BenchmarkRow],
    draw: Draw,
    *,
    samples: int,
    rows_together: int,
    made: Callable[[int], None] = lambda count: None,
) -> int:
    """Draw the pictures that are not there yet.

    Args:
        folder: Where they belong; it is claimed first.
        rows: Rows to draw.
        draw: What draws them; a row that lacks one picture is drawn whole, and what exists is left alone.
        samples: Pictures of each row.
        rows_together: Rows whose references are in memory together.
        made: Called with the number of new pictures after every part; may raise to stop.

    Returns:
        The number of pictures written.

    Raises:
        UserError: The folder holds pictures made otherwise.
    """
    folder.claim()
    missing = [[number for number in range(samples) if not folder.is_whole((row, number))] for row in rows]
    wanted = [(row, numbers) for row, numbers in zip(rows, missing, strict=True) if numbers]
    written = 0
    for start in range(0, len(wanted), rows_together):
        part = wanted[start : start + rows_together]
        drawings = [(row, number) for row, _ in part for number in range(samples)]
        lacking = {row.id: numbers for row, numbers in part}
        for (row, number), image in zip(drawings, draw([row for row, _ in part]), strict=True):
            if number in lacking[row.id]:
                folder.write((row, number), image)
                written += 1
        made(sum(len(numbers) for _, numbers in part))
    return written
