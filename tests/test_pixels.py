"""Rounding to 8 bits is one thing everywhere, and a PNG loses nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo.pixels import BROKEN_PIXEL, encode_png, to_array, to_pil, to_uint8


def test_to_uint8_undoes_a_png() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(levels.float() / 255), levels)
    assert to_uint8(torch.tensor([-0.1, 1.1])).tolist() == [0, 255]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_order_of_clamping_and_rounding_does_not_matter(dtype: torch.dtype) -> None:
    noise = torch.Generator().manual_seed(0)
    images = (torch.rand(100_000, generator=noise) * 1.2 - 0.1).to(dtype)
    clamped_first = images.clamp(0, 1).mul(255).round().byte()
    assert torch.equal(to_uint8(images), clamped_first)
    inside = images.clamp(0, 1)
    assert torch.equal(to_uint8(inside), (inside * 255).round().byte())


@pytest.mark.parametrize("channels", [1, 3])
def test_png_holds_every_pixel(channels: int) -> None:
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (channels, 5, 7), generator=noise, dtype=torch.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert (image.format, image.mode) == ("PNG", "RGB" if channels == 3 else "L")
        assert np.array_equal(np.asarray(image), to_array(pixels))


def test_values_outside_0_to_1_are_clamped() -> None:
    assert to_pil(torch.tensor([-3.0, 7.0, 0.5]).reshape(3, 1, 1)).getpixel((0, 0)) == (0, 255, 128)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_pixel_is_loud_and_its_neighbours_are_untouched(bad: float) -> None:
    image = torch.full((3, 1, 2), 0.2)
    image[1, 0, 0] = bad
    drawn = to_pil(image)
    assert drawn.getpixel((0, 0)) == BROKEN_PIXEL and drawn.getpixel((1, 0)) == (51, 51, 51)


@pytest.mark.parametrize(
    "image", [torch.zeros(1, 4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4).byte()]
)
def test_what_is_no_image_is_refused(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[3, H, W\]"):
        to_pil(image)
