"""A reference in the shape of the drawn image: what is cut, what is kept, and what is said about it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from customized_grpo.data.fitting import Fitting, cut_note, lost_share, resize_cover


def gradient(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), 0 * x + 90], -1)
    return Image.fromarray(pixels.astype(np.uint8))


@settings(max_examples=60)
@given(*[st.integers(1, 70)] * 4)
def test_both_ways_give_exactly_the_asked_size(width: int, height: int, new_h: int, new_w: int) -> None:
    for fit in ("crop", "pad"):
        assert Fitting(new_h, new_w, fit).apply(gradient(width, height)).size == (new_w, new_h)  # type: ignore[arg-type]


def test_resize_cover_keeps_the_middle_and_the_aspect_ratio() -> None:
    image = Image.new("RGB", (40, 10), "black")
    image.paste("white", (15, 0, 25, 10))
    assert np.asarray(resize_cover(image, 10, 10)).min() == 255  # the central square, exactly
    assert np.asarray(resize_cover(image, 5, 5))[:, 1:-1].min() == 255
    assert np.array_equal(resize_cover(image, 10, 40), image)
    with pytest.raises(ValueError, match="positive"):
        resize_cover(image, 0, 5)


def test_a_padded_image_is_whole_in_a_neutral_border_and_its_mask_stays_aligned() -> None:
    image = Image.new("RGB", (40, 10), "red")
    padded = np.asarray(Fitting(20, 20, "pad").apply(image))
    assert (padded[8:12] == (255, 0, 0)).all(-1).mean() == 1  # 40 x 10 becomes 20 x 5
    assert (padded[:7] == 128).all() and (padded[13:] == 128).all()
    mask = np.asarray(Fitting(20, 20, "pad").apply(Image.new("L", (40, 10), 255)))
    assert np.array_equal(mask == 255, (padded == (255, 0, 0)).all(-1)) and set(np.unique(mask)) == {0, 255}
    with pytest.raises(ValueError, match="positive"):
        Fitting(0, 5, "pad").apply(image)


def test_the_loss_is_the_share_of_the_area_that_is_cut() -> None:
    assert lost_share((1536, 1024), 512, 512) == pytest.approx(1 / 3)
    assert lost_share((1024, 1536), 512, 512) == pytest.approx(1 / 3)
    assert lost_share((512, 512), 1024, 1024) == 0
    assert lost_share((1536, 1024), 512, 768) == pytest.approx(0)


def test_references_that_are_cut_are_counted_and_the_worst_is_named() -> None:
    sizes = [("a.jpg", (512, 500)), ("b.jpg", (1536, 1024)), ("c.jpg", (640, 480))]
    note = cut_note(sizes, 512, 512)
    assert note is not None and note.startswith("2 of 3 references lose more than 5% of their area")
    assert "most of all b.jpg (1024 x 1536): 33%; model.reference_fit=whole" in note
    assert cut_note(sizes[:1], 512, 512) is None and cut_note([], 512, 512) is None
