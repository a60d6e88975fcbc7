"""The sample images of a run folder: what the index lists, and each image as a data URI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from customized_grpo.errors import UserError
from customized_grpo.files import read_json
from customized_grpo.links import leads_out
from customized_grpo.pages.page import data_uri


@dataclass(frozen=True)
class Samples:
    """The sample images of a run.

    Attributes:
        folder: Folder of the PNG files.
        rows: {"prompt", "subject", "reference", "target"} of each prompt that is drawn again and again.
        iterations: Iterations after which they were drawn.
    """

    folder: Path
    rows: Sequence[dict[str, str | None]]
    iterations: Sequence[int]

    def reference(self, row: int) -> str:
        """Return the reference image of a row as a data URI."""
        return self._image(self.rows[row].get("reference"))

    def target(self, row: int) -> str | None:
        """Return the true image of a row as a data URI; None when there is none."""
        name = self.rows[row].get("target")
        return self._image(name) if name else None

    def drawn(self, row: int, iteration: int) -> str:
        """Return what the model drew for a row after `iteration` iterations, as a data URI."""
        return self._image(f"iteration_{iteration:06d}/{row:02d}.png")

    def _image(self, name: str | None) -> str:
        """Return a PNG of the folder as a data URI, scaled down where it is large.

        Raises:
            UserError: The file is absent, not a PNG, or outside the folder.
        """
        path = self.folder / (name or "")
        # names come from a file of the run folder, which may be from elsewhere
        if not name or leads_out(path, self.folder) or not path.is_file():
            raise UserError(
                f"{self.folder / 'index.json'} lists {name!r}, which is no image in {self.folder}"
            )
        try:
            with Image.open(path, formats=["PNG"]) as image:
                return data_uri(image.convert("RGB"))
        # Pillow says ValueError or SyntaxError of some damaged chunks
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{path} cannot be read as PNG: {error}") from error


def read_samples(folder: Path) -> Samples | None:
    """Return the sample images of a run's `samples` folder; None when there are none.

    Raises:
        UserError: Its index is damaged.
    """
    file = folder / "index.json"
    index = read_json(file) if file.is_file() else {}
    if not index:
        return None
    rows = index.get("rows")
    iterations = index.get("iterations")
    if (
        not isinstance(rows, list)
        or not isinstance(iterations, list)
        or not all(_is_row(row) for row in rows)
        or not all(isinstance(iteration, int) and iteration >= 0 for iteration in iterations)
    ):
        raise UserError(f"{file}: rows and iterations are expected")
    return Samples(folder, rows, iterations)


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and all(value is None or isinstance(value, str) for value in row.values())
