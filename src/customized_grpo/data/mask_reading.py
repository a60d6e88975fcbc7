"""Which pixels a mask file marks: by its brightness or by its transparency, or why nobody can tell.

Editors, annotation tools and segmentation models store masks in different ways, and a wrong reading is
silent: everything, or the background, becomes the subject. What has two readings is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from customized_grpo.data.pixel_modes import OPAQUE, alpha_of, to_rgb
from customized_grpo.errors import UserError

MASK_THRESHOLD = 128
"""Value from which a pixel is subject."""

CHROMA = 48
"""Largest minus smallest channel from which a pixel has a colour; JPEG tints greys less."""

FEW = 0.01
"""Share of pixels below which a colour or a tone is noise."""

BLACK = 32
WHITE = 223
"""Values up to which a pixel is black, and from which it is white."""

SMALLEST_JUDGED = 8
"""Pixels of the shorter side from which a mask has a border to judge by."""

_HINT = "A mask is white on the subject and black elsewhere, or opaque on it and transparent elsewhere."

Pixels: TypeAlias = NDArray[np.uint8]


def mask_of(image: Image.Image, path: Path) -> Image.Image:
    """Return the mask ("L": 255 is subject) that a decoded image of any mode is.

    Without transparency it is the brightness. With transparency it is the alpha channel, if what is opaque is
    a cut-out (in colours, or all bright or all dark); or the brightness, if that is black and white.

    Args:
        image: The image.
        path: Its file, for messages.

    Raises:
        UserError: It is in colours, or its brightness and its transparency mark different things.
    """
    alpha = alpha_of(image)
    # black, because what is transparent is not subject
    rgb = to_rgb(image, path, background="black")
    grey = rgb.convert("L")
    if alpha is None:
        if _share(_chroma(rgb) > CHROMA) > FEW:
            raise UserError(f"{path} is in colours, so it is unclear what it marks as a mask", hint=_HINT)
        return grey
    visible = np.asarray(alpha) >= OPAQUE
    # flat from here on: the values of the opaque pixels only
    values = np.asarray(grey)[visible]
    bright = _share(values >= MASK_THRESHOLD)
    is_one_tone = not FEW <= bright <= 1 - FEW
    if is_one_tone or _share(_chroma(rgb)[visible] > CHROMA) > FEW:
        return alpha
    if _share((values <= BLACK) | (values >= WHITE)) >= 1 - 5 * FEW:  # soft edges are in between
        return grey
    raise UserError(
        f"{path} can be read in two ways: its transparency marks {_share(visible):.0%} of the pixels as "
        f"subject, its brightness {_share(np.asarray(grey) >= MASK_THRESHOLD):.0%}",
        hint=f"{_HINT} Save it without transparency if its brightness is the mask.",
    )


def check_mask(mask: Image.Image, path: Path) -> None:
    """Refuse a mask ("L") of the file `path` that marks nothing, or the background.

    Raises:
        UserError: No pixel reaches 128, so the whole subject would be hidden; or it marks the border all
            around and not the middle, as masks of the opposite convention do.
    """
    pixels = np.asarray(mask)
    brightest = int(pixels.max())
    if brightest < MASK_THRESHOLD:
        raise UserError(
            f"{path}: the mask marks no pixel (its largest value is {brightest} of 255)",
            hint="A mask is 255 (in 16 bits 65,535) on the subject and 0 elsewhere, or is transparent there.",
        )
    if _is_inverted(pixels >= MASK_THRESHOLD):
        raise UserError(
            f"{path}: the mask looks inverted: it marks the border all around, and not what is inside",
            hint="Masks are white on the subject. Invert it; if it is right as it is, paint its outermost "
            "pixels black.",
        )


def _is_inverted(marked: NDArray[np.bool_]) -> bool:
    """Return whether a mask [H, W] marks the border, and leaves out the middle or something else inside.

    A subject that fills the image marks the border, but the middle as well.
    """
    height, width = marked.shape
    if min(height, width) < SMALLEST_JUDGED:
        return False
    inside = marked[1:-1, 1:-1]
    # A frame one pixel wide, counted without building it.
    n_border = marked.size - inside.size
    border = (np.count_nonzero(marked) - np.count_nonzero(inside)) / n_border
    # The inner half in both directions.
    middle = marked[height // 4 : -(height // 4), width // 4 : -(width // 4)]
    if border >= 0.95:
        return _share(~inside) >= FEW
    return bool(border >= 0.75) and _share(middle) <= 0.5


def _chroma(rgb: Image.Image) -> Pixels:
    """Return the largest minus the smallest channel of every pixel [H, W]."""
    pixels = np.asarray(rgb)
    chroma: Pixels = pixels.max(axis=2) - pixels.min(axis=2)
    return chroma


def _share(mask: NDArray[np.bool_]) -> float:
    """Return the share of True; 0 of nothing."""
    return float(mask.mean()) if mask.size else 0.0
