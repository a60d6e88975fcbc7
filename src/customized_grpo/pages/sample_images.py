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

    def reference(self, row: int) -> str | None:
        """Return the reference image of a row as a data URI; None when there is none."""
        path = self.reference_path(row)
        return self._image(path) if path is not None else None

    def target(self, row: int) -> str | None:
        """Return the true image of a row as a data URI; None when there is none."""
        path = self.target_path(row)
        return self._image(path) if path is not None else None

    def drawn(self, row: int, iteration: int) -> str:
        """Return what the model drew for a row after `iteration` iterations, as a data URI."""
        return self._image(self.drawn_path(row, iteration))

    def reference_path(self, row: int) -> Path | None:
        """Return the file of the reference image of a row; None when there is none.

        Raises:
            UserError: The file is absent or outside the folder; so for the next two.
        """
        name = self.rows[row].get("reference")
        return None if name is None else self._path(name)

    def target_path(self, row: int) -> Path | None:
        """Return the file of the true image of a row; None when there is none."""
        name = self.rows[row].get("target")
        return None if name is None else self._path(name)

    def drawn_path(self, row: int, iteration: int) -> Path:
        """Return the file of what the model drew for a row after `iteration` iterations."""
        # as `reporting.images` names them
        return self._path(f"iteration_{iteration:06d}/{row:02d}.png")

    def _path(self, name: str | None) -> Path:
        path = self.folder / (name or "")
        # names come from a file of the run folder, which may be from elsewhere
        if not name or leads_out(path, self.folder) or not path.is_file():
            raise UserError(
                f"{self.folder / 'index.json'} lists {name!r}, which is no image in {self.folder}"
            )
        return path

    def _image(self, path: Path) -> str:
        """Return a PNG as a data URI, scaled down where it is large."""
        return data_uri(read_png(path))


def read_png(path: Path) -> Image.Image:
    """Return a PNG as RGB.

    Raises:
        UserError: It is not one, or damaged.
    """
    try:
        # one decoder: a folder from elsewhere must not choose among all that Pillow has
        with Image.open(path, formats=["PNG"]) as image:
            return image.convert("RGB")
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
