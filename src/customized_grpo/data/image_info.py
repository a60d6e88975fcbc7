"""Open each image once: its size and a hash of its pixels, or the reason why it cannot be used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from customized_grpo.data.images import open_image, open_mask
from customized_grpo.data.mask_reading import MASK_THRESHOLD
from customized_grpo.errors import UserError


@dataclass(frozen=True)
class ImageInfo:
    """Size and hash of an image that could be decoded.

    Attributes:
        size: Width and height in pixels, upright.
        digest: Equal for two images exactly if all their pixels are; empty if hashes are off.
        box: Of a mask: left, top, right and bottom of what it marks; right and bottom lie outside.
    """

    size: tuple[int, int]
    digest: str = ""
    box: tuple[int, int, int, int] | None = None


def read_info(image: Image.Image) -> ImageInfo:
    """Return size and digest of an 8-bit RGB or grey image."""
    # images of 2 x 8 and of 4 x 4 pixels may have the same bytes
    header = f"{image.mode} {image.width} {image.height} ".encode()
    return ImageInfo(
        image.size, hashlib.blake2b(header + np.asarray(image).tobytes(), digest_size=16).hexdigest()
    )


def mask_size_problem(file: Path, mask: tuple[int, int], reference: tuple[int, int]) -> str:
    """Return the message for a mask that cannot belong to its reference; sizes are (width, height)."""
    return f"mask {file} is {mask[0]} x {mask[1]} pixels, its reference {reference[0]} x {reference[1]}"


class ImageInspector:
    """Opens every file once, however many rows name it; few images are in memory at a time.

    Args:
        digests: Whether to hash the pixels of images, so that duplicates can be found.
    """

    def __init__(self, *, digests: bool = False) -> None:
        self.digests = digests
        self._images: dict[Path, ImageInfo | str] = {}
        self._masks: dict[Path, ImageInfo | str] = {}

    def remember(self, file: Path, info: ImageInfo | str, *, is_mask: bool) -> None:
        """Take the info of a file, or the reason why it cannot be used, from elsewhere."""
        (self._masks if is_mask else self._images)[file] = info

    def image(self, file: Path) -> ImageInfo | str:
        """Return the info of an image, or the reason why it cannot be decoded."""
        if file not in self._images:
            try:
                image = open_image(file)
            except UserError as error:
                self._images[file] = error.message
            else:
                self._images[file] = read_info(image) if self.digests else ImageInfo(image.size)
        return self._images[file]

    def mask(self, file: Path) -> ImageInfo | str:
        """Return the info of a mask (without digest), or the reason why it is not a mask."""
        if file not in self._masks:
            try:
                mask = open_mask(file)
                # Pillow calls the function for each of the 256 values, not for each pixel
                marked = mask.point(lambda value: 255 * (value >= MASK_THRESHOLD))
                self._masks[file] = ImageInfo(mask.size, box=marked.getbbox())
            except UserError as error:
                self._masks[file] = error.message
        return self._masks[file]
