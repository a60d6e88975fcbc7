"""Write the images and masks of a converted data set; each is opened once on the way."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from customized_grpo.data.adapters.base import Cut, MaskFile, SourceImage
from customized_grpo.data.image_info import ImageInfo, mask_size_problem, read_info
from customized_grpo.data.images import decode_image, open_alpha, open_image, open_mask
from customized_grpo.data.mask_reading import check_mask
from customized_grpo.data.row_checks import RowProblem
from customized_grpo.disk import way_out
from customized_grpo.errors import UserError

JPEG_QUALITY = 95


@dataclass(frozen=True)
class Placed:
    """An image of the converted data set.

    Attributes:
        path: The file; not there yet in a dry run.
        info: Its size and digest.
    """

    path: Path
    info: ImageInfo


CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)
"""What `link` says where it cannot link: another file system, or one without links."""


class DatasetWriter:
    """Writer of the folders `images` and `masks` of a new data set.

    Every method raises RowProblem for an image that cannot be used, and UserError when the disk refuses.

    Args:
        folder: The data set.
        link: Hard-link files that stay as they are instead of copying them.
        dry: Open and check everything, write nothing.
    """

    def __init__(self, folder: Path, *, link: bool = False, dry: bool = False) -> None:
        self.folder = folder
        self.link = link
        self.dry = dry
        self._placed: dict[Path, Placed | RowProblem] = {}
        self._masks: dict[Path, RowProblem | None] = {}
        self._whole: tuple[Path | bytes, Image.Image] | None = None  # the last image that parts were cut from

    def image(self, image: SourceImage) -> Placed:
        """Place an image: a file or its bytes as they are, a part of an image as JPEG."""
        path = self.folder / "images" / image.name
        if path not in self._placed:
            try:
                self._placed[path] = self._place(image, path)
            except RowProblem as problem:
                # remembered: a bad file is a mistake of every row that names it, but is opened once
                self._placed[path] = problem
        placed = self._placed[path]
        if isinstance(placed, RowProblem):
            raise placed
        return placed

    def mask(self, mask: MaskFile, reference: Placed) -> Path:
        """Place a mask that the source ships, in the size of its reference."""
        path = self.folder / "masks" / mask.name
        place = self._place_nonzero if mask.nonzero else self._place_standard
        return self._once(path, lambda: place(mask.path, path, reference.info.size))

    def alpha_mask(self, image: SourceImage) -> Path:
        """Write the transparency of a reference as its mask."""
        path = self.folder / "masks" / f"{image.name}.png"
        return self._once(path, lambda: self._place_alpha(image, path))

    def _once(self, path: Path, place: Callable[[], None]) -> Path:
        """Place a mask when a row names it for the first time, and keep the result for the next row."""
        if path not in self._masks:
            try:
                place()
                self._masks[path] = None
            except RowProblem as problem:
                self._masks[path] = problem
        known = self._masks[path]
        if known is not None:
            raise known
        return path

    def _place(self, image: SourceImage, path: Path) -> Placed:
        if image.cut is not None:
            part = self._open_whole(image, image.cut).crop(image.cut.box)
            self._write(part, path)
            return Placed(path, read_info(part))
        source = image.source
        with _as_row_problem():
            if isinstance(source, bytes):
                info = read_info(decode_image(source, Path(image.name)))
            else:
                info = read_info(open_image(source))
        if isinstance(source, bytes):
            self._write_bytes(source, path)
        else:
            self._copy(source, path)
        return Placed(path, info)

    def _open_whole(self, original: SourceImage, cut: Cut) -> Image.Image:
        """Return the whole image of a part; it is kept, because the next part is usually of the same one."""
        source = original.source
        # by identity: both parts have one object, and comparing the bytes of images takes long
        if self._whole is None or self._whole[0] is not source:
            with _as_row_problem():
                if isinstance(source, bytes):
                    image = decode_image(source, Path(original.name))
                else:
                    image = open_image(source)
            self._whole = (source, image)
        size = self._whole[1].size
        if size != cut.whole:
            raise RowProblem(
                f"its image is {size[0]} x {size[1]} pixels, not {cut.whole[0]} x {cut.whole[1]}"
            )
        return self._whole[1]

    def _place_nonzero(self, source: Path, path: Path, size: tuple[int, int]) -> None:
        with _as_row_problem():
            grey = open_image(source).convert("L")
            # NEAREST: any other filter would make values between 0 and 255
            mask = grey.point(lambda value: 255 * (value > 0)).resize(size, Image.Resampling.NEAREST)
            check_mask(mask, source)
        self._write(mask, path)

    def _place_standard(self, source: Path, path: Path, size: tuple[int, int]) -> None:
        with _as_row_problem():
            mask = open_mask(source)
        if mask.size != size:
            raise RowProblem(mask_size_problem(source, mask.size, size))
        self._copy(source, path)

    def _place_alpha(self, image: SourceImage, path: Path) -> None:
        source = image.source
        if image.cut is not None:
            raise RowProblem("its reference is cut from an image without transparency to make a mask of")
        if isinstance(source, bytes):
            raise RowProblem("its reference is no file, whose transparency alone can become a mask")
        with _as_row_problem():
            alpha = open_alpha(source)
            if alpha is None:
                raise RowProblem(f"{source} has no transparency to make a mask of")
            check_mask(alpha, source)
        self._write(alpha, path)

    def _copy(self, source: Path, path: Path) -> None:
        if self.dry:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.link:
                # resolved: on Linux a hard link to a symbolic link is one more symbolic link
                os.link(source.resolve(), path)
            else:
                shutil.copyfile(source, path)
        except OSError as error:
            hint = way_out(error)
            if self.link and error.errno in CANNOT_LINK:
                hint = "Files can be linked within one file system only; leave out --link."
            raise UserError(f"cannot write {path}: {error.strerror}", hint=hint) from error

    def _write_bytes(self, content: bytes, path: Path) -> None:
        if self.dry:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}", hint=way_out(error)) from error

    def _write(self, image: Image.Image, path: Path) -> None:
        if self.dry:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".png":
                image.save(path)
            else:
                # without subsampling: by default JPEG halves the resolution of colours
                image.save(path, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}", hint=way_out(error)) from error


@contextmanager
def _as_row_problem() -> Iterator[None]:
    """Make a file that is no usable image a problem of its row."""
    try:
        yield
    except UserError as error:
        raise RowProblem(error.message) from error
