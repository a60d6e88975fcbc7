"""References as they are: what reaches the model of a training, on pixels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from customized_grpo import extensions
from customized_grpo.config import Config, load_config
from customized_grpo.errors import UserError
from customized_grpo.pixels import to_array, to_uint8
from customized_grpo.policies.families import FLUX1
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.policies.sampling import Sampling
from customized_grpo.training import trainer
from customized_grpo.training.parts import build_data

Recipe = Callable[..., Config]
BORDERS = {"left": "red", "right": "lime", "top": "blue", "bottom": "yellow"}


def photo(width: int, height: int) -> Image.Image:
    """A grey photo with a border of another colour on each side, which a cut would lose."""
    image = Image.new("RGB", (width, height), "grey")
    pen = ImageDraw.Draw(image)
    band = min(width, height) // 8
    pen.rectangle((0, 0, width, band), "blue")
    pen.rectangle((0, height - band, width, height), "yellow")
    pen.rectangle((0, band, band, height - band), "red")
    pen.rectangle((width - band, band, width, height - band), "lime")
    return image


def borders(pixels: NDArray[np.uint8]) -> dict[str, tuple[int, ...]]:
    """The colours in the middle of each side of an image [H, W, 3]."""
    height, width = pixels.shape[:2]
    inset = min(height, width) // 20
    places = {
        "left": (height // 2, inset),
        "right": (height // 2, width - 1 - inset),
        "top": (inset, width // 2),
        "bottom": (height - 1 - inset, width // 2),
    }
    return {side: tuple(int(level) for level in pixels[place]) for side, place in places.items()}


EXPECTED = {
    "left": (255, 0, 0),
    "right": (0, 255, 0),
    "top": (0, 0, 255),
    "bottom": (255, 255, 0),
}


def write_rows(folder: Path, sizes: Sequence[tuple[int, int]], **more: Any) -> Path:
    lines = []
    for number, size in enumerate(sizes):
        photo(*size).save(folder / f"{number}.png")
        row = {"id": f"row-{number}", "prompt": "a red toy", "references": [f"{number}.png"], "subject": "s"}
        lines.append(json.dumps(row | more) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder / "rows.jsonl"


def preset(name: str, rows: Path, *overrides: str) -> Config:
    data = [f"data.train={rows}", "data.held_out=null", "rewards.dino.segment=none"]
    return load_config(name, [*data, *overrides])


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("flux1-kontext", (832, 1248)),
        ("flux1-uno", (336, 512)),
        ("flux2-klein", (832, 1248)),
        ("qwen-image-edit", (832, 1248)),
    ],
)
def test_a_wide_reference_reaches_a_square_training_whole(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    config = preset(name, write_rows(tmp_path, [(1536, 1024)]))
    assert (config.model.height, config.model.width) == (512, 512)
    data = build_data(config)
    (reference,) = data.train[0].references
    assert tuple(reference.shape) == (3, *size) and not data.notes
    found = to_array(to_uint8(reference))
    assert borders(found) == EXPECTED
    # what the published pipeline makes of the photo before it encodes it
    theirs = VaeImageProcessor(vae_scale_factor=16).resize(photo(1536, 1024), *size)
    assert np.array_equal(found, np.asarray(theirs))


def test_a_reference_is_cut_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, [(1536, 1024)])
    data = build_data(preset("flux1-kontext", rows, "model.reference_fit=crop"))
    (reference,) = data.train[0].references
    assert tuple(reference.shape) == (3, 512, 512)
    sides = borders(to_array(to_uint8(reference)))
    assert sides["left"] != EXPECTED["left"] and sides["right"] != EXPECTED["right"]
    assert "1 of 1 references lose more than 5%" in data.notes[0]


def test_the_size_of_the_recipe_overrides_the_rule(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, [(1536, 1024)])
    for size, shape in ((512, (416, 624)), ("image", (416, 624)), ("uno", (336, 512)), (256, (208, 320))):
        data = build_data(preset("flux1-kontext", rows, f"data.reference_size={size}"))
        assert tuple(data.train[0].references[0].shape[1:]) == shape
    null = preset("flux1-kontext", rows, "data.reference_size=null")
    assert tuple(build_data(null).train[0].references[0].shape[1:]) == (832, 1248)
    other = preset("flux1-kontext", rows, "data.reference_size=null", "model.path=./mine")
    assert tuple(build_data(other).train[0].references[0].shape[1:]) == (416, 624)


MINE = dataclasses.replace(FLUX1, sampling=Sampling(guidance=1.0, steps=4, reference_size=256))
"""A family from outside, with a rule of its own."""


def test_a_family_from_outside_has_its_own_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(extensions.TRUST, __name__)
    rows = write_rows(tmp_path, [(1536, 1024)])
    mine = ["data.reference_size=null", "model.path=./mine", f"model.family={__name__}:MINE"]
    data = build_data(preset("flux1-kontext", rows, *mine))
    assert tuple(data.train[0].references[0].shape[1:]) == (208, 320)


def test_a_photo_that_the_rule_squeezes_is_named(tmp_path: Path) -> None:
    data = build_data(preset("flux1-kontext", write_rows(tmp_path, [(512, 512), (1500, 100)])))
    (note,) = data.notes
    assert "1 of 2 references change their aspect by more than 10%" in note
    assert "1.png: 100 x 1500 becomes 672 x 1568" in note


def test_rows_of_a_sharded_model_need_references_of_one_size(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, [(512, 512), (768, 512), (500, 500)])
    with pytest.raises(
        UserError, match="references of row 'row-0' at 1024 x 1024 pixels, and those of 1 row"
    ) as error:
        build_data(preset("flux1-kontext", rows, "model.shard=true"))
    assert "row 'row-1': 832 x 1248" in error.value.message
    assert (
        len(build_data(preset("flux1-kontext", rows, "model.shard=true", "model.reference_fit=pad")).train)
        == 3
    )


@pytest.mark.parametrize("name", ["flux3-klein", "qwen-image-2.1"])
def test_a_family_whose_calls_depend_on_the_prompts_is_not_sharded(name: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, [(512, 512)])
    assert len(build_data(preset(name, rows)).train) == 1
    with pytest.raises(UserError, match="once for each length of text") as error:
        build_data(preset(name, rows, "model.shard=true"))
    assert "Leave model.shard out" in str(error.value.hint)


@pytest.mark.slow
def test_references_of_different_sizes_are_trained_together_and_the_models_view_is_kept(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(tmp_path, [(96, 64), (64, 64), (64, 96)])
    (tmp_path / "held_out.jsonl").write_text(rows.read_text().replace('"s"', '"t"', 1))
    seen: list[torch.Size] = []
    encode = Flux1Policy._reference_tokens

    def spied(policy: Flux1Policy, images: torch.Tensor) -> torch.Tensor:
        seen.append(images.shape[2:])
        return encode(policy, images)

    monkeypatch.setattr(Flux1Policy, "_reference_tokens", spied)
    config = recipe(
        f"run.dir={tmp_path / 'run'}",
        f"data={{kind: manifest, train: {rows}, held_out: {tmp_path / 'held_out.jsonl'}}}",
        "rewards.dino.segment=none",
        "evaluation.batch_size=3",
        "train.prompts_per_iteration=3",
        "train.updates_per_iteration=1",
    )
    assert trainer.train(config) == 0
    assert set(seen) == {(48, 80), (64, 64), (80, 48)}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    ratios = [line["policy/ratio_max_deviation"] for line in lines if "policy/ratio_max_deviation" in line]
    assert len(ratios) == 2 and max(ratios) == 0
    kept = Image.open(tmp_path / "run" / "samples" / "reference_00.png")
    assert kept.size == (80, 48) and borders(np.asarray(kept)) == EXPECTED
