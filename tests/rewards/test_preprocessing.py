from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil

from customized_grpo.errors import UserError
from customized_grpo.rewards.preprocessing import Preprocess

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PROCESSORS = {
    "dinov2": lambda: BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, **IMAGENET
    ),
    "clip": lambda: CLIPImageProcessorPil(),
    "siglip": lambda: SiglipImageProcessorPil(size={"height": 224, "width": 224}),
    "squash": lambda: CLIPImageProcessorPil(size={"height": 60, "width": 80}, do_center_crop=False),
    "bilinear": lambda: BitImageProcessorPil(
        size={"shortest_edge": 33}, crop_size={"height": 31, "width": 32}, resample=2, **IMAGENET
    ),
}


def random_images(seed: int, height: int, width: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


def as_tensor(images: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def expected(processor: Any, images: np.ndarray[Any, Any]) -> Tensor:
    return processor([Image.fromarray(image) for image in images], return_tensors="pt").pixel_values


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=12)
@given(height=st.integers(40, 320), width=st.integers(40, 320))
def test_equals_transformers_pillow_processors(
    name: str, tmp_path_factory: pytest.TempPathFactory, height: int, width: int
) -> None:
    processor, folder = PROCESSORS[name](), tmp_path_factory.mktemp("processor")
    processor.save_pretrained(folder)
    preprocess = Preprocess.from_file(folder / "preprocessor_config.json")
    images = random_images(height * 1000 + width, height, width)
    assert torch.equal(preprocess(as_tensor(images)), expected(processor, images))


def test_an_image_of_the_right_size_takes_the_short_way_to_the_same_numbers() -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    images = random_images(0, 64, 64)
    preprocess = Preprocess(64, (64, 64), tuple(processor.image_mean), tuple(processor.image_std))
    assert torch.allclose(preprocess(as_tensor(images)), expected(processor, images), atol=2e-7, rtol=0)


def test_the_short_way_rounds_to_8_bits_like_the_long_one() -> None:
    exact = torch.full((1, 3, 8, 8), 100.4 / 255)
    for size in (8, 16):
        pixels = Preprocess(size, None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(exact)
        assert torch.allclose(pixels * 255, torch.full_like(pixels, 100.0), atol=1e-4)


def test_a_letterbox_keeps_the_proportions_and_pads_with_black() -> None:
    preprocess = Preprocess(32, None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), letterbox=True)
    pixels = preprocess(torch.ones(1, 3, 20, 40))
    assert pixels.shape == (1, 3, 32, 32)
    assert (
        (pixels[..., 8:24, :] == 1).all()
        and (pixels[..., :8, :] == 0).all()
        and (pixels[..., 24:, :] == 0).all()
    )


def test_the_mean_colour_normalises_to_almost_nothing() -> None:
    preprocess = Preprocess(None, None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    neutral = torch.tensor(preprocess.mean).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert preprocess(neutral).abs().max() < 0.5 / 255 / 0.224 + 1e-6


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        (json.dumps({"size": 224}), "image_mean"),
        (json.dumps({"size": {"longest_edge": 3}, **IMAGENET}), "height"),
        (json.dumps({"size": 64, "do_center_crop": True, "crop_size": 65, **IMAGENET}), "does not fit"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None, text: str) -> None:
    file = tmp_path / "preprocessor_config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=text) as caught:
        Preprocess.from_file(file)
    assert str(file) in caught.value.message


def test_old_files_with_plain_numbers_are_read(tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(
        json.dumps({"size": 224, "crop_size": 200, "do_center_crop": True, "resample": 2, **IMAGENET})
    )
    preprocess = Preprocess.from_file(file)
    assert (preprocess.size, preprocess.crop, preprocess.resample) == (224, (200, 200), 2)
