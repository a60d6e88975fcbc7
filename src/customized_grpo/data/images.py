"""The only place that opens an image file.

Whatever a file claims to be, the outcome is an 8-bit RGB (or mask) image, upright, of bounded size, or a
UserError that names the file and says why. Sizes are checked on the header, before any pixel is decoded.
"""

from __future__ import annotations

import importlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from customized_grpo.data.mask_reading import check_mask, mask_of
from customized_grpo.data.pixel_modes import alpha_of, to_rgb
from customized_grpo.errors import UserError

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 50_000_000  # a 48-megapixel photo passes; opening it takes up to 450 MB (WebP: 800 MB)
MAX_BYTES = 100_000_000
# A closed list: Pillow's others include formats that run an interpreter (EPS) or are rarely fuzzed.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
HEIF = "HEIF"
"""The format of an iPhone's photos (.heic), read where the package pillow-heif is installed."""
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_SNIFFED = {
    b"<svg": "is an SVG drawing; export it to PNG",
    b"<?xml": "is XML (an SVG drawing, perhaps); export it to PNG",
    b"<!doctype html": "is a web page, not an image; the download went wrong",
    b"<html": "is a web page, not an image; the download went wrong",
    b"version https://git-lfs": "is a Git LFS pointer; fetch the real file with `git lfs pull`",
}


def open_image(path: Path, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """Return the image as upright 8-bit RGB.

    Transparency is composited on white. 16-bit grey is scaled to 8 bits. CMYK is converted without its colour
    profile, and profiles are ignored in general. Animations give their first frame. EXIF rotation is applied.

    Args:
        path: A regular file in one of `FORMATS`; its name's ending does not matter.
        max_pixels: Largest accepted width times height.
        max_bytes: Largest accepted file.

    Raises:
        UserError: The file is missing, not a regular file, not such an image, damaged, or too large.
    """
    with _naming(path):
        return to_rgb(_decode(path, max_pixels, max_bytes), path)


def open_mask(path: Path, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """Return a subject mask as upright 8-bit grey ("L"): 255 is subject, 0 is background.

    It is read from the brightness or the transparency, see `mask_reading.mask_of`.

    Raises:
        UserError: As `open_image`; also for a mask that marks nothing, is inverted, or has two readings.
    """
    with _naming(path):
        mask = mask_of(_decode(path, max_pixels, max_bytes), path)
    check_mask(mask, path)
    return mask


def decode_image(content: bytes, name: Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an image from memory (such as a cell of a table) as `open_image` returns one of a file.

    Args:
        content: The bytes of a file.
        name: What to call it in messages.
        max_pixels: Largest accepted width times height.

    Raises:
        UserError: As `open_image`.
    """
    with _naming(name):
        _check_content(io.BytesIO(content), len(content), name, MAX_BYTES)
        return to_rgb(_decode_file(io.BytesIO(content), name, max_pixels), name)


def open_alpha(path: Path) -> Image.Image | None:
    """Return the alpha channel as a mask ("L": 255 is opaque), or None if hardly any pixel is transparent.

    Raises:
        UserError: As `open_image`.
    """
    with _naming(path):
        return alpha_of(_decode(path, MAX_PIXELS, MAX_BYTES))


def read_text(path: Path, key: str) -> str | None:
    """Return an entry that was written into an image file that can be opened; None if there is none."""
    with _naming(path), Image.open(path, formats=FORMATS) as image:
        value = image.info.get(key)
    return value if isinstance(value, str) else None


def to_tensor(image: Image.Image) -> torch.Tensor:
    """Return an RGB image as fp32 [3, H, W], or a mask ("L") as fp32 [1, H, W], in [0, 1] (value / 255).

    Raises:
        ValueError: The image has another mode; `open_image` and `open_mask` never return one.
    """
    import torch

    if image.mode not in ("RGB", "L"):
        raise ValueError(f"image mode must be RGB or L, got {image.mode}")
    # np.array copies; np.asarray would be read-only, of which torch warns
    pixels_HWC = np.array(image, dtype=np.uint8).reshape(image.height, image.width, -1)
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous().float() / 255


def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height of an image, upright; only its header is read.

    Raises:
        UserError: As `open_image`, except that damage behind the header is not found.
    """
    with _naming(path), open(path, "rb", opener=_open_without_waiting) as file:
        _check_file(file, path, MAX_BYTES)
        image = Image.open(file, formats=_formats(file, path))
        # the size of a TIFF is upright already
        # EXIF orientations 5 to 8 swap width and height
        is_lying = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.height, image.width) if is_lying else image.size


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn every error of decoding one file into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not an image ({', '.join(FORMATS)})") from error
    # A damaged file makes Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        raise UserError(f"{path} cannot be decoded: {str(error) or type(error).__name__}") from error


def _decode(path: Path, max_pixels: int, max_bytes: int) -> Image.Image:
    """Return the first frame in its own mode, upright and in memory."""
    with open(path, "rb", opener=_open_without_waiting) as file:
        _check_file(file, path, max_bytes)
        return _decode_file(file, path, max_pixels)


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a named pipe at once instead of waiting for a writer; `_check_file` then refuses it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_file(file: BinaryIO, path: Path, max_bytes: int) -> None:
    # asked of the open file: a path could be replaced between the check and the reading
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a regular file")
    _check_content(file, status.st_size, path, max_bytes)


def _check_content(file: BinaryIO, size: int, path: Path, max_bytes: int) -> None:
    if size == 0:
        raise UserError(f"{path} is empty")
    if size > max_bytes:
        raise UserError(f"{path} has {size:,} bytes; the limit is {max_bytes:,}")
    # a BOM and blank lines may stand before the tag of an SVG or a web page
    head = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    file.seek(0)
    for start, reason in _SNIFFED.items():
        if head.startswith(start):
            raise UserError(f"{path} {reason}")


def _formats(file: BinaryIO, path: Path) -> tuple[str, ...]:
    """Return the formats that a file may have.

    Raises:
        UserError: It is a HEIC photo, and nothing here reads them.
    """
    head = file.read(64)
    file.seek(0)
    # AVIF has the same container as HEIC, and may name the shared brand mif1
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS or b"avif" in head:
        return FORMATS
    if not _reads_heif():
        raise UserError(
            f"{path} is a HEIC photo; `pip install pillow-heif` to read it, or export it as JPEG "
            "(`magick mogrify -format jpg *.heic`)"
        )
    return (*FORMATS, HEIF)


@cache
def _reads_heif() -> bool:
    """Register the reader of pillow-heif with Pillow; return whether it is installed."""
    try:
        plugin = importlib.import_module("pillow_heif")
    except ImportError:
        return False
    plugin.register_heif_opener()
    return True


def _decode_file(file: BinaryIO, path: Path, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(file, formats=_formats(file, path))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own limit, met before ours when max_pixels is raised; a warning only under -W error.
        raise UserError(f"{path} is too large: {error}") from error
    if image.width * image.height > max_pixels:
        raise UserError(
            f"{path} is {image.width:,} x {image.height:,} pixels; the limit is {max_pixels:,} in all",
            hint="Scale it down; training never needs more than about 2,000 pixels a side.",
        )
    # decodes every pixel now, so that a truncated file fails here
    image.load()
    # in place: the plain form copies an upright image too, 150 MB for the largest
    ImageOps.exif_transpose(image, in_place=True)
    return image
