"""From the many modes of image files (palettes, 16 bits, transparency, CMYK) to 8-bit RGB and alpha."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from customized_grpo.errors import UserError

OPAQUE = 128
"""Alpha from which a pixel counts as opaque."""

MIN_TRANSPARENT = 1 / 1000
"""Share of pixels from which an image is a cut-out: a few pixels are the slip of an editor."""

# 4 million pixels: 12 to 16 MB for each copy of a band
_BAND_PIXELS = 1 << 22


def to_rgb(image: Image.Image, path: Path, background: str = "white") -> Image.Image:
    """Return a decoded image as 8-bit RGB.

    Args:
        image: In any mode.
        path: Its file, for messages.
        background: Colour on which transparency is composited.

    Raises:
        UserError: It has 32 bits per pixel.
    """
    if image.mode in ("I", "F"):
        raise UserError(
            f"{path} has 32 bits per pixel, in which no value is defined as white",
            hint="Save it with 8 or 16 bits per channel.",
        )
    rgb = Image.new("RGB", image.size)
    # band by band, because each step makes a copy, and a whole copy may take 200 MB
    height = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, height):
        band = image.crop((0, top, image.width, min(top + height, image.height)))
        rgb.paste(_band_to_rgb(band, background), (0, top))
    return rgb


def alpha_of(image: Image.Image) -> Image.Image | None:
    """Return the alpha channel ("L"); None if fewer than one in a thousand pixels are transparent."""
    if not _has_alpha(image):
        return None
    alpha = image.convert("RGBA").getchannel("A")
    transparent = int(np.count_nonzero(np.asarray(alpha) < OPAQUE))
    return alpha if transparent >= MIN_TRANSPARENT * image.width * image.height else None


def _has_alpha(image: Image.Image) -> bool:
    # A palette or grey image may name one transparent value instead of a channel.
    return "A" in image.getbands() or ("transparency" in image.info and not image.mode.startswith("I;16"))


def _band_to_rgb(band: Image.Image, background: str) -> Image.Image:
    if band.mode.startswith("I;16"):
        # 255 times a 16-bit value does not fit into 16 bits
        grey = np.asarray(band).astype(np.uint32)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if _has_alpha(band):
        rgba = band.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB")
    return band.convert("RGB")
