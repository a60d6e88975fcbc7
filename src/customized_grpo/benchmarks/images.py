"""The images of a benchmark: one PNG each, drawn once, and never of two models in one folder.

OUT/images/ID-00.png     written under another name first, so a file of this name is always whole
OUT/hashes/ID-00.txt     SHA-256 of the image as it was drawn; an image that was changed or put there by
                         someone is drawn again
OUT/images.json          the settings that the images depend on; another model or setting is refused
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from torch import Tensor

from customized_grpo.benchmarks.protocol import GeneratorStamp, ImageProtocol, differences
from customized_grpo.benchmarks.rows import BenchmarkRow
from customized_grpo.errors import UserError
from customized_grpo.files import file_sha256, read_json, replacing, write_json, write_text
from customized_grpo.pixels import to_pil

Drawing = tuple[BenchmarkRow, int]
"""A row and the number of one of its images, from 0."""

Draw = Callable[[Sequence[BenchmarkRow]], Iterable[Tensor]]
"""Draws all images [3, H, W] of each row in turn; each depends on its row's id and its number alone."""

STAMP = "images.json"
NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})
MAX_NAME = 120
"""Characters of an id in a file name; longer ids are shortened and get a hash to stay different."""


class ImageFolder:
    """The folder of one benchmark's images by one generator.

    Args:
        path: The folder.
        protocol: The settings that the images depend on.
        generator: The model that draws them.
        settings: Its other settings that change images, such as the number of tokens it reads of a prompt.
    """

    def __init__(
        self,
        path: Path,
        protocol: ImageProtocol,
        generator: GeneratorStamp,
        settings: Mapping[str, Any] = NO_SETTINGS,
    ) -> None:
        self.path = path
        self.protocol = protocol
        self.generator = generator
        self.settings = settings

    def claim(self) -> None:
        """Put the stamp into the folder, or check the one that is there.

        Raises:
            UserError: The folder has images of another model or setting, its stamp is damaged, or it cannot
                be written.
        """
        stamp: dict[str, Any] = {
            **asdict(self.protocol),
            "weights": self.generator.weights,
            # As JSON reads them back.
            "model": json.loads(json.dumps(dict(self.settings))),
        }
        file = self.path / STAMP
        try:
            if file.is_file():
                self._check(read_json(file), stamp)
                return
            for name in ("images", "hashes"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
            # last: a kill before it leaves empty folders, which the next call claims
            write_json(file, stamp)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.path}: {error.strerror}", hint="Choose another --out."
            ) from error

    def _check(self, earlier: dict[str, Any], stamp: dict[str, Any]) -> None:
        if "model" not in earlier:  # a folder of an older version does not know them
            stamp = {key: value for key, value in stamp.items() if key != "model"}
        lines = differences(earlier, stamp)
        if lines:
            raise UserError(
                f"{self.path} holds images with other settings (there, now):\n  " + "\n  ".join(lines),
                hint="Choose another --out, or delete the folder.",
            )

    def file(self, drawing: Drawing) -> Path:
        """Return the path of an image."""
        row, number = drawing
        # quoted, because an id may hold a slash; a blank is kept, as names stay readable with it
        name = quote(row.id, safe=" ")
        if len(name) > MAX_NAME:
            # 16 digits and a hyphen are the 17 characters that are cut off below
            digest = hashlib.sha256(row.id.encode()).hexdigest()[:16]
            name = f"{name[: MAX_NAME - 17]}-{digest}"
        return self.path / "images" / f"{name}-{number:02d}.png"

    def is_own(self, drawing: Drawing) -> bool:
        """Return whether an image is there as it was drawn, byte for byte."""
        try:
            return self._hash_file(drawing).read_text(encoding="ascii") == file_sha256(self.file(drawing))
        # no image, no hash, or a hash that somebody wrote into: all are drawn again
        except (OSError, UnicodeDecodeError):
            return False

    def write(self, drawing: Drawing, image: Tensor) -> None:
        """Write an image [3, H, W] and its hash; a kill leaves all of it, or an image that is not its own."""
        file = self.file(drawing)
        with replacing(file) as draft:
            to_pil(image).save(draft, format="PNG")
            # of the draft: once it has its name, somebody else could change it
            digest = file_sha256(draft)
        write_text(self._hash_file(drawing), digest)

    def _hash_file(self, drawing: Drawing) -> Path:
        return self.path / "hashes" / f"{self.file(drawing).stem}.txt"


def generate(
    folder: ImageFolder,
    rows: Sequence[BenchmarkRow],
    draw: Draw,
    *,
    samples: int,
    rows_together: int,
    on_batch: Callable[[int], None] = lambda count: None,
    on_foreign: Callable[[list[Path]], None] = lambda files: None,
) -> int:
    """Draw the images that are not there yet, or not as they were drawn.

    Args:
        folder: Their folder; it is claimed first.
        rows: Rows to draw.
        draw: Draws them; a row that lacks one image is drawn whole, and existing files are left alone.
        samples: Images of each row.
        rows_together: Rows whose references are in memory together.
        on_batch: Called with the number of new images after every part; may raise to stop.
        on_foreign: Called before drawing with the files that someone changed or put there, if there are any.

    Returns:
        The number of images written.

    Raises:
        UserError: The folder holds images with other settings.
    """
    folder.claim()
    missing: list[tuple[BenchmarkRow, list[int]]] = []
    for row in rows:
        numbers = [number for number in range(samples) if not folder.is_own((row, number))]
        if numbers:
            missing.append((row, numbers))
    foreign = []
    for row, numbers in missing:
        files = [folder.file((row, number)) for number in numbers]
        foreign += [file for file in files if file.exists()]
    if foreign:
        on_foreign(foreign)
    written = 0
    for start in range(0, len(missing), rows_together):
        part = missing[start : start + rows_together]
        # `draw` yields all images of a row, also those that are there already.
        images = draw([row for row, _ in part])
        missing_numbers = {row.id: numbers for row, numbers in part}
        before = written
        for drawing, image in zip(product([row for row, _ in part], range(samples)), images, strict=True):
            row, number = drawing
            if number in missing_numbers[row.id]:
                folder.write(drawing, image)
                written += 1
        on_batch(written - before)
    return written
