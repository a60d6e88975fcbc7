"""Decode PNG files that come from anywhere.

The size is read from the header and checked before anything is decoded: 12 KB of PNG can be 286 MB of pixels.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">I4sIIBBBBB")  # length and name of the first chunk, then its fields
_COLOUR_TYPES = {1: 0, 3: 2}  # PNG's numbers for grey and RGB, by channels


class PngError(ValueError):
    """Bytes that are no acceptable PNG; the message says why."""


def size(png: bytes, channels: int) -> tuple[int, int]:
    """Return width and height according to the header.

    Args:
        png: The file.
        channels: 3 for RGB, 1 for grey.

    Raises:
        PngError: It is no PNG with 8 bits per channel and `channels` channels.
    """
    if len(png) < len(_SIGNATURE) + _HEADER.size or not png.startswith(_SIGNATURE):
        raise PngError("not a PNG")
    length, name, width, height, depth, colour, _, _, interlaced = _HEADER.unpack_from(png, len(_SIGNATURE))
    if name != b"IHDR" or length != 13 or width == 0 or height == 0:
        raise PngError("not a PNG")
    # One form only: palettes, 16 bits and interlacing have no use here and paths of their own in a decoder.
    if (depth, colour, interlaced) != (8, _COLOUR_TYPES[channels], 0):
        raise PngError(f"not a plain {'RGB' if channels == 3 else 'grey'} PNG of 8 bits per channel")
    return int(width), int(height)


def pixel_count(png: bytes, channels: int) -> int:
    """Return width x height according to the header.

    Raises:
        PngError: See `size`.
    """
    width, height = size(png, channels)
    return width * height


def decode_png(png: bytes, channels: int) -> Tensor:
    """Return uint8 [channels, H, W]; check `size` first.

    Raises:
        PngError: The file is damaged, or the decoder reads another size than `size` does.
    """
    expected = size(png, channels)
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            # A second header in the file is what Pillow would follow: 8 x 8 could become 13,000 x 13,000.
            is_as_expected = image.size == expected
            pixels = np.array(image, dtype=np.uint8) if is_as_expected else None
    # A damaged file makes Pillow's decoder raise nearly anything: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise PngError(f"the PNG is damaged ({type(error).__name__})") from error
    if pixels is None:
        raise PngError("the PNG has two headers")
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1).contiguous()
