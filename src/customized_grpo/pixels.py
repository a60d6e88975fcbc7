"""From float images in [0, 1] to 8 bits, Pillow images and PNG files: one way of rounding for all.

What a reward, a judge, a page and a saved file hold of an image is the same, bit for bit. Rounding is to the
nearest of 256 levels (halves to even) in the dtype of the image; what is outside of [0, 1] is clamped. The
results equal those of `(image * 255).round().byte()` for images within [0, 1].
"""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

BROKEN_PIXEL = (255, 0, 255)
"""Colour of a pixel that is not finite: it must be seen, not look like black or white."""
_FAST = 1  # zlib's levels go to 9: noisy images hardly get smaller after the first, the time triples


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [0, 1], of any shape, to uint8; the device stays. NaN has no defined level."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def to_array(pixels: Tensor) -> NDArray[np.uint8]:
    """Return one uint8 image [3, H, W] or [1, H, W] as Pillow takes it: [H, W, 3] or [H, W], on the CPU."""
    pixels_HWC = pixels.permute(1, 2, 0).contiguous().cpu().numpy()
    return pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC


def to_pil(image: Tensor) -> Image.Image:
    """Return one float image [3, H, W], nominally in [0, 1], as 8-bit RGB.

    It is rounded in float32. Values outside are clamped; pixels that are not finite get `BROKEN_PIXEL`.

    Raises:
        ValueError: It has another shape, or is not a floating-point tensor.
    """
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise ValueError(f"an image is a float tensor [3, H, W], not {image.dtype} {tuple(image.shape)}")
    values = image.detach().to("cpu", torch.float32)
    is_broken_HW = ~values.isfinite().all(dim=0)
    pixels_HWC = to_array(to_uint8(values.nan_to_num()))
    pixels_HWC[is_broken_HW.numpy()] = BROKEN_PIXEL
    return Image.fromarray(pixels_HWC)


def encode_png(pixels: Tensor) -> bytes:
    """Return one uint8 image [3, H, W] or [1, H, W] as a PNG file, written for speed rather than size."""
    file = io.BytesIO()
    Image.fromarray(to_array(pixels)).save(file, format="PNG", compress_level=_FAST)
    return file.getvalue()
