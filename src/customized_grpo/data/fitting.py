"""How a reference gets the size at which a generator sees it: whole, or in the shape of the drawn image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from customized_grpo.reference_sizes import MULTIPLE, ReferenceSize, Size, changed_aspect, reference_size

Fit = Literal["whole", "crop", "pad"]

NEUTRAL = 128
"""Grey of the border; the border of a mask is 0, not the subject."""

NOTED_LOSS = 0.05
"""Share of its area that a reference may lose without a word."""

NOTED_STRETCH = 0.1
"""Share by which the aspect of a whole reference may change without a word."""


@dataclass(frozen=True)
class Fitting:
    """The size and shape that references get.

    Attributes:
        height: Height of the drawn images, in pixels.
        width: Width of the drawn images, in pixels.
        fit: "whole": references keep their own aspect. "crop" and "pad": they get the shape of the drawn
            image, cut or inside a border.
        size: Size of whole references, see `reference_sizes.reference_size`.
        multiple: Their sides are multiples of so many pixels.
    """

    height: int
    width: int
    fit: Fit = "whole"
    size: ReferenceSize = "image"
    multiple: int = MULTIPLE

    def size_of(self, photo: Size, n_references: int = 1) -> Size:
        """Return the width and height that a photo gets as one of `n_references` of its row."""
        if self.fit != "whole":
            return self.width, self.height
        return reference_size(photo, self.size, n_references, (self.width, self.height), self.multiple)

    def apply(self, image: Image.Image, n_references: int = 1) -> Image.Image:
        """Return an image or a mask ("L") in that size; an image and its mask stay aligned."""
        match self.fit:
            case "whole":
                # the filter of the published pipelines: their references are the same, bit for bit
                size = self.size_of(image.size, n_references)
                return image.resize(size, Image.Resampling.LANCZOS)
            case "crop":
                return resize_cover(image, self.height, self.width)
            case "pad":
                return _resize_inside(image, self.height, self.width)

    def note(self, references: Iterable[tuple[str, Size]]) -> str | None:
        """Return a sentence about references that are not seen as they are; None without any.

        Args:
            references: Name, and width and height, of each.
        """
        match self.fit:
            case "whole":
                return self._stretch_note(references)
            case "crop":
                return cut_note(references, self.height, self.width)
            case "pad":
                return None

    def _stretch_note(self, references: Iterable[tuple[str, Size]]) -> str | None:
        total = 0
        stretched: list[tuple[float, str, Size]] = []
        for name, size in references:
            total += 1
            change = changed_aspect(size, self.size_of(size))
            if change > NOTED_STRETCH:
                stretched.append((change, name, size))
        if not stretched:
            return None
        _, name, size = max(stretched)
        width, height = self.size_of(size)
        return (
            f"{len(stretched):,} of {total:,} references change their aspect by more than "
            f"{NOTED_STRETCH:.0%} at the size in which the model sees them, most of all {name}: "
            f"{size[1]} x {size[0]} becomes {height} x {width} (height x width)"
        )


def resize_cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scale to cover height x width exactly, keeping the aspect ratio and cutting the overhang evenly.

    Bicubic with antialiasing. An image and its mask of the same size stay aligned.

    Raises:
        ValueError: height or width is not positive.
    """
    if height < 1 or width < 1:
        raise ValueError(f"size must be positive, got {height} x {width}")
    box = crop_box(image.size, height, width)
    # `box` takes fractions of a pixel; a crop before would round, and move the image against its mask
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def crop_box(size: Size, height: int, width: int) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of what `resize_cover` keeps of an image."""
    image_width, image_height = size
    # The larger of the two scales covers; the smaller one would leave a border.
    scale = max(height / image_height, width / image_width)
    # rounding can make the overhang slightly negative, and Pillow refuses a box outside of the image
    cut_x = max(0.0, (image_width - width / scale) / 2)
    cut_y = max(0.0, (image_height - height / scale) / 2)
    return cut_x, cut_y, image_width - cut_x, image_height - cut_y


def lost_share(size: Size, height: int, width: int) -> float:
    """Return the share of its area that an image loses by `resize_cover`."""
    left, top, right, bottom = crop_box(size, height, width)
    return 1 - (right - left) * (bottom - top) / (size[0] * size[1])


def cut_note(references: Iterable[tuple[str, Size]], height: int, width: int) -> str | None:
    """Return a sentence about references that lose much of their area when they are cut; None without any.

    Args:
        references: Name and size of each.
        height: Height of the drawn images, in pixels.
        width: Their width.
    """
    total = 0
    cut: list[tuple[float, str, Size]] = []
    for name, size in references:
        total += 1
        lost = lost_share(size, height, width)
        if lost > NOTED_LOSS:
            cut.append((lost, name, size))
    if not cut:
        return None
    lost, name, size = max(cut)
    return (
        f"{len(cut):,} of {total:,} references lose more than {NOTED_LOSS:.0%} of their area when they are "
        f"cut to the shape of the drawn image ({height} x {width}, height x width), most of all {name} "
        f"({size[1]} x {size[0]}): {lost:.0%}; model.reference_fit=whole keeps them as they are"
    )


def _resize_inside(image: Image.Image, height: int, width: int) -> Image.Image:
    if height < 1 or width < 1:
        raise ValueError(f"size must be positive, got {height} x {width}")
    # The smaller of the two scales keeps all of the image inside.
    scale = min(height / image.height, width / image.width)
    # a very long and thin image would round to no pixels
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    border = 0 if image.mode == "L" else (NEUTRAL,) * 3
    canvas = Image.new(image.mode, (width, height), border)
    # Centred, for the mask as for its image.
    place = ((width - inner[0]) // 2, (height - inner[1]) // 2)
    canvas.paste(image.resize(inner, Image.Resampling.BICUBIC), place)
    return canvas
