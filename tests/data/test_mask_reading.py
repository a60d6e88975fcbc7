"""Masks as editors and annotation tools store them: the right subject, or a clear message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from customized_grpo.data.images import open_alpha, open_mask
from customized_grpo.errors import UserError

SIDE = 64
TRUTH = np.zeros((SIDE, SIDE), bool)
TRUTH[16:48, 20:44] = True


def grey(values: np.ndarray | None = None) -> Image.Image:
    return Image.fromarray(np.where(TRUTH, 255, 0).astype(np.uint8) if values is None else values)


def with_alpha(image: Image.Image, alpha: np.ndarray) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return image


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8))


ALMOST_OPAQUE = np.full((SIDE, SIDE), 255)
ALMOST_OPAQUE[0, 0] = 0
FRAME = np.full((SIDE, SIDE), 255)  # the transparent margin of a scan
FRAME[:4] = 0
CUT = np.where(TRUTH, 255, 0)

RIGHT = {
    "black and white": grey(),
    "one transparent pixel": with_alpha(grey(), ALMOST_OPAQUE),
    "a transparent margin": with_alpha(grey(), FRAME),
    "half transparent everywhere": with_alpha(grey(), np.full((SIDE, SIDE), 200)),
    "a cut-out in colours": with_alpha(photo(), CUT),
    "a white shape": with_alpha(Image.new("L", (SIDE, SIDE), 255), CUT),
    "a black shape": with_alpha(Image.new("L", (SIDE, SIDE), 0), CUT),
    "16 bits": Image.fromarray(np.where(TRUTH, 65535, 0).astype(np.uint16)),
    "a palette": grey().convert("P"),
    "one bit": grey().convert("1"),
    "grey and alpha": with_alpha(grey(), ALMOST_OPAQUE).convert("LA"),
    "a palette with a transparent entry": with_alpha(grey(), CUT).quantize(4),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_subject_is_read_however_it_is_stored(tmp_path: Path, name: str) -> None:
    RIGHT[name].save(tmp_path / "m.png")
    assert np.array_equal(np.asarray(open_mask(tmp_path / "m.png")) >= 128, TRUTH)


SOFT = np.clip(np.add.outer(np.arange(SIDE), np.arange(SIDE)) * 2, 0, 255).astype(np.uint8)
OFF_CENTRE = np.full((SIDE, SIDE), 255, np.uint8)
OFF_CENTRE[2:10, 2:12] = 0
AT_THE_EDGE = np.full((SIDE, SIDE), 255, np.uint8)
AT_THE_EDGE[10:, 12:52] = 0

WRONG = {
    "inverted": (grey(np.where(TRUTH, 0, 255).astype(np.uint8)), "looks inverted"),
    "inverted, off centre": (grey(OFF_CENTRE), "looks inverted"),
    "inverted, at the edge": (grey(AT_THE_EDGE), "looks inverted"),
    "a photo": (photo(), "is in colours"),
    "a photo with one transparent pixel": (with_alpha(photo(), ALMOST_OPAQUE), "is in colours"),
    "two readings": (with_alpha(grey(SOFT), FRAME), "transparency marks 94% .* brightness 49%"),
    "8 bits of 16": (Image.fromarray(np.where(TRUTH, 255, 0).astype(np.uint16)), "marks no pixel"),
    "all transparent": (with_alpha(grey(), np.zeros((SIDE, SIDE))), "marks no pixel"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_would_mark_something_else_is_refused(tmp_path: Path, name: str) -> None:
    image, message = WRONG[name]
    image.save(tmp_path / "m.png")
    with pytest.raises(UserError, match=f"m.png.*{message}") as caught:
        open_mask(tmp_path / "m.png")
    assert caught.value.hint


@pytest.mark.parametrize("box", [(0, 0, 64, 64), (0, 10, 64, 64), (8, 0, 60, 64)])
def test_a_subject_that_fills_the_image_is_not_taken_for_the_background(
    tmp_path: Path, box: tuple[int, int, int, int]
) -> None:
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, box)
    mask.save(tmp_path / "m.png")
    assert open_mask(tmp_path / "m.png").getextrema()[1] == 255


def test_a_photo_with_one_transparent_pixel_has_no_mask_in_its_transparency(tmp_path: Path) -> None:
    with_alpha(photo(), ALMOST_OPAQUE).save(tmp_path / "p.png")
    assert open_alpha(tmp_path / "p.png") is None
