"""Sizes at which generators see references: rules from the size of a photo to the size in pixels.

A rule keeps the photo's own aspect and nothing is cut. The rules of published models give the sizes of their
own pipelines (diffusers 0.42) or code; sides are rounded to whole tokens, which changes the aspect a little.
"""

from __future__ import annotations

import math
from typing import Literal

Size = tuple[int, int]
"""Width and height, as Pillow has them."""

ReferenceRule = Literal["kontext", "uno", "flux2", "qwen_edit", "image"]
ReferenceSize = ReferenceRule | int
"""A rule, or the side of a square that has as many pixels as the reference shall have."""

MULTIPLE = 16
"""Side of a token of the published models, in pixels."""
QWEN_MULTIPLE = 32
MEGAPIXEL = 1024 * 1024

MAX_ASPECT = 8
"""Longest over shortest side; a photo that is longer is squeezed. FLUX.2's pipeline refuses such a photo."""

KONTEXT_SIZES: tuple[Size, ...] = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104),
    (1024, 1024),
    (1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688), (1568, 672),
)  # fmt: skip
"""The sizes that FLUX.1-Kontext was trained with, about a megapixel each."""

UNO_LONG_SIDE = 512
UNO_LONG_SIDE_OF_SEVERAL = 320
"""Longer side of a reference of UNO (arXiv 2504.02160, its inference code): alone, and among several."""


def reference_size(
    photo: Size, rule: ReferenceSize, n_references: int, drawn: Size, multiple: int = MULTIPLE
) -> Size:
    """Return the width and height at which a generator sees a photo, in pixels.

    Args:
        photo: Width and height of the photo, upright.
        rule: "kontext": the nearest of `KONTEXT_SIZES` by aspect. "uno": by its longer side. "flux2": its own
            size, at most a megapixel. "qwen_edit": a megapixel, in multiples of 32. "image": as many pixels
            as the drawn image. A number N: as many as a square of N x N.
        n_references: References of the row, of which the photo is one.
        drawn: Width and height of the images that are drawn.
        multiple: Sides are multiples of so many pixels, but for rules that name their own.

    Raises:
        ValueError: A size is not positive.
    """
    if min(*photo, *drawn) < 1:
        raise ValueError(f"sizes must be positive, got {photo} and {drawn}")
    width, height = _bounded(photo)
    match rule:
        case "kontext":
            return _nearest_of_kontext(width / height)
        case "uno":
            longer = UNO_LONG_SIDE if n_references == 1 else UNO_LONG_SIDE_OF_SEVERAL
            scale = longer / max(width, height)
            return _down(int(width * scale)), _down(int(height * scale))
        case "flux2":
            scale = min(1.0, math.sqrt(MEGAPIXEL / (width * height)))
            return _down(int(width * scale)), _down(int(height * scale))
        case "qwen_edit":
            return _of_area(width / height, MEGAPIXEL, QWEN_MULTIPLE)
        case "image":
            return _of_area(width / height, drawn[0] * drawn[1], multiple)
        case _:
            return _of_area(width / height, rule * rule, multiple)


def largest_reference(rule: ReferenceSize, n_references: int, drawn: Size, multiple: int = MULTIPLE) -> Size:
    """Return the width and height at which a generator sees a large square photo, for estimates."""
    return reference_size((16_384, 16_384), rule, n_references, drawn, multiple)


def changed_aspect(photo: Size, seen: Size) -> float:
    """Return by which share the longer of two aspects is longer than the other: 0 means none."""
    ratio = (photo[0] * seen[1]) / (photo[1] * seen[0])
    return max(ratio, 1 / ratio) - 1


def _bounded(photo: Size) -> Size:
    """Return the size with a shorter side that is at least 1 / `MAX_ASPECT` of the longer one."""
    width, height = photo
    return max(width, math.ceil(height / MAX_ASPECT)), max(height, math.ceil(width / MAX_ASPECT))


def _nearest_of_kontext(aspect: float) -> Size:
    # the pipeline breaks ties by the smaller width, which `min` over tuples does as well
    _, width, height = min((abs(aspect - w / h), w, h) for w, h in KONTEXT_SIZES)
    return width, height


def _down(side: int) -> int:
    return max(MULTIPLE, side // MULTIPLE * MULTIPLE)


def _of_area(aspect: float, area: int, multiple: int) -> Size:
    # the order of the products is that of Qwen's pipeline, so that both round alike
    width = math.sqrt(area * aspect)
    height = width / aspect
    return _rounded(width, multiple), _rounded(height, multiple)


def _rounded(side: float, multiple: int) -> int:
    return max(multiple, round(side / multiple) * multiple)
