from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from customized_grpo.reporting.images import (
    SampleRow,
    save_image,
    save_samples,
    start_samples,
)


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return data.reshape(image.height, image.width, 3)


def test_every_8_bit_level_survives_the_round_trip(tmp_path: Path) -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    image = (levels.float() / 255).expand(3, -1, -1)
    assert torch.equal(pixels(save_image(tmp_path / "a" / "b.png", image))[..., 0], levels)


def test_height_width_and_channels_keep_their_places(tmp_path: Path) -> None:
    image = torch.zeros(3, 2, 5)
    image[0, 1, 4] = 1.0
    image[2, 0, 3] = 1.0
    read = pixels(save_image(tmp_path / "x.png", image))
    assert read.shape == (2, 5, 3)
    assert read[1, 4].tolist() == [255, 0, 0] and read[0, 3].tolist() == [0, 0, 255]


def rows(count: int) -> list[SampleRow]:
    return [SampleRow(f"prompt {i}", [torch.full((3, 4, 4), 0.1 * i)], target=None) for i in range(count)]


def index(folder: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((folder / "index.json").read_text())
    return loaded


def test_samples_lie_where_the_index_says(tmp_path: Path) -> None:
    references = [torch.zeros(3, 4, 4), torch.ones(3, 2, 6)]
    start_samples(tmp_path, [*rows(1), SampleRow("p", references, "cat", torch.ones(3, 4, 4))])
    paths = save_samples(tmp_path, 10, torch.rand(2, 3, 4, 4))
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "iteration_000010/00.png",
        "iteration_000010/01.png",
    ]
    assert index(tmp_path) == {
        "rows": [
            {"prompt": "prompt 0", "subject": None, "reference": "reference_00.png", "target": None},
            {"prompt": "p", "subject": "cat", "reference": "reference_01.png", "target": "target_01.png"},
        ],
        "iterations": [10],
    }
    assert all(path.is_file() for path in [*paths, tmp_path / "target_01.png"])
    assert Image.open(tmp_path / "reference_01_1.png").size == (6, 2)


def test_iterations_are_listed_once_in_order_also_after_a_resume(tmp_path: Path) -> None:
    start_samples(tmp_path, rows(1))
    for iteration in (0, 20, 10):
        save_samples(tmp_path, iteration, torch.rand(1, 3, 4, 4))
    start_samples(tmp_path, rows(1))
    save_samples(tmp_path, 20, torch.rand(1, 3, 4, 4))
    assert index(tmp_path)["iterations"] == [0, 10, 20]


def test_as_many_images_as_rows_are_required(tmp_path: Path) -> None:
    start_samples(tmp_path, rows(2))
    with pytest.raises(ValueError, match="2 rows"):
        save_samples(tmp_path, 0, torch.rand(3, 3, 4, 4))
