"""Resize, crop and normalise as the checkpoint's own processor would.

Images are rounded to 8 bits first: a reward sees the pixels of a saved PNG, and Pillow, whose filters (and
rounding) the encoders were trained with, needs 8 bits. torch's bicubic filter differs from Pillow's by 4 grey
levels on noise; it is therefore not used. Where no resize is needed all stays on the device.
Measured on 60 images against transformers' Pillow processors: equal, bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from customized_grpo.errors import UserError
from customized_grpo.files import read_json
from customized_grpo.pixels import to_uint8

FILE_NAME = "preprocessor_config.json"
Size = tuple[int, int]
Colour = tuple[float, float, float]
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)
CLIP_MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Colour = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """How images [B, 3, H, W] in [0, 1] become pixel values.

    Attributes:
        size: Length to which the shorter edge is resized, or (height, width) regardless of the proportions,
            in pixels; None leaves the size alone.
        crop: (height, width) of the part that is cut from the centre; None cuts nothing.
        mean: Mean of each channel, on the scale of [0, 1].
        std: Standard deviation of each channel, on the scale of [0, 1].
        resample: Pillow's number of the filter; 3 is bicubic.
        letterbox: Whether to resize the longer edge instead and pad with black to a square of `size`.
    """

    size: int | Size | None
    crop: Size | None
    mean: Colour
    std: Colour
    resample: int = int(Image.Resampling.BICUBIC)
    letterbox: bool = False

    def __post_init__(self) -> None:
        if self.letterbox and (not isinstance(self.size, int) or self.crop is not None):
            raise ValueError("a letterbox needs one size and no crop")
        if self.crop is not None and self.size is not None:
            edges = (self.size, self.size) if isinstance(self.size, int) else self.size
            if edges[0] < self.crop[0] or edges[1] < self.crop[1]:
                raise ValueError(f"a crop of {self.crop} does not fit into {edges}")

    def __call__(self, images: Tensor) -> Tensor:
        """Map images [B, 3, H, W] in [0, 1] to normalised pixel values [B, 3, h, w], fp32, same device."""
        # 8 bits before resizing, as from a saved file: Pillow resizes bytes.
        pixels = self._resize(to_uint8(images))
        if self.letterbox:
            pixels = _pad_to_square(pixels)
        if self.crop is not None:
            pixels = _centre_crop(pixels, self.crop)
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON, for fingerprints."""
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return settings

    @staticmethod
    def from_file(file: Path) -> Preprocess:
        """Read a checkpoint's preprocessor_config.json.

        Raises:
            UserError: The file is missing, or describes something this class cannot do.
        """
        config = read_json(file, missing_hint="It comes with the checkpoint: copy it there.")
        try:
            return Preprocess(
                size=_read_size(config["size"]) if config.get("do_resize", True) else None,
                crop=_read_crop(config["crop_size"]) if config.get("do_center_crop", False) else None,
                mean=_read_colour(config["image_mean"]),
                std=_read_colour(config["image_std"]),
                resample=int(config.get("resample", Image.Resampling.BICUBIC)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: cannot be used: {type(error).__name__} {error}") from error

    def _resize(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        target = self._target(height, width)
        if target == (height, width):
            return pixels
        resized = [
            # Pillow takes (width, height), everything else here (height, width).
            Image.fromarray(image).resize(target[::-1], resample=Image.Resampling(self.resample))
            for image in pixels.permute(0, 2, 3, 1).cpu().numpy()
        ]
        stacked = torch.from_numpy(np.stack([np.asarray(image) for image in resized]))
        return stacked.permute(0, 3, 1, 2).to(pixels.device)

    def _target(self, height: int, width: int) -> Size:
        if self.size is None:
            return height, width
        if not isinstance(self.size, int):
            return self.size
        if self.letterbox:
            # The longer edge fits, so that nothing is cut off.
            scale = self.size / max(height, width)
            return max(1, round(height * scale)), max(1, round(width * scale))
        if height <= width:
            # int, not round: the longer edge is cut off as in torchvision and transformers
            return self.size, int(self.size * width / height)
        return int(self.size * height / width), self.size


def _centre_crop(pixels: Tensor, crop: Size) -> Tensor:
    height, width = pixels.shape[-2:]
    top = (height - crop[0]) // 2
    left = (width - crop[1]) // 2
    if top < 0 or left < 0:
        raise ValueError(f"cannot cut {crop} from {(height, width)}")
    return pixels[..., top : top + crop[0], left : left + crop[1]]


def _pad_to_square(pixels: Tensor) -> Tensor:
    height, width = pixels.shape[-2:]
    side = max(height, width)
    top = (side - height) // 2
    left = (side - width) // 2
    return functional.pad(pixels, (left, side - width - left, top, side - height - top))


def _read_size(value: Any) -> int | Size:
    if isinstance(value, dict):
        return int(value["shortest_edge"]) if set(value) == {"shortest_edge"} else _read_crop(value)
    return int(value)


def _read_crop(value: Any) -> Size:
    return (
        (int(value["height"]), int(value["width"])) if isinstance(value, dict) else (int(value), int(value))
    )


def _read_colour(values: Any) -> Colour:
    red, green, blue = values
    return float(red), float(green), float(blue)
