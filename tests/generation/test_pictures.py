"""`cgrpo generate` as a user meets it: files, what they say of themselves, the grid, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo.cli.main import main
from customized_grpo.data.images import open_image, to_tensor
from customized_grpo.generation.grid import GridRow, compose_grid

PROMPTS = ("a toy at night", "a toy <b>in</b> the snöw | 雪")


def generate(source: object, *options: object, prompts: tuple[str, ...] = PROMPTS[:1]) -> int:
    asked = [text for prompt in prompts for text in ("--prompt", prompt)]
    try:
        return main(["generate", str(source), *asked, *map(str, options)])
    except SystemExit as left:
        assert isinstance(left.code, int)
        return left.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def toy(folder: Path, examples: Any) -> Path:
    pixels = (examples[0].references[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(folder / "toy.png")
    Image.new("L", (64, 64), 255).save(folder / "mask.png")
    return folder / "toy.png"


@pytest.fixture(scope="module")
def run(folder: Path, recipe: Any, make_adapted: Any, make_run: Any) -> Path:
    config = recipe(f"run.dir={folder / 'run'}")
    return make_run(config, make_adapted(config))


@pytest.fixture(scope="module")
def drawn(folder: Path, run: Path, toy: Path) -> Path:
    assert (
        generate(run, "--reference", toy, "--count", 2, "--grid", "--out", folder / "drawn", prompts=PROMPTS)
        == 0
    )
    return folder / "drawn"


def pixels(path: Path) -> torch.Tensor:
    return to_tensor(open_image(path))


def test_pictures_are_numbered_prompt_by_prompt_with_those_of_the_base(drawn: Path) -> None:
    numbers = [f"{number:04d}" for number in range(4)]
    expected = {f"{n}{end}" for n in numbers for end in (".png", ".json", "-base.png", "-base.json")}
    assert {path.name for path in drawn.iterdir()} == {*expected, "0000-grid.png"}


def test_a_picture_says_how_it_was_made(drawn: Path, run: Path, toy: Path) -> None:
    with Image.open(drawn / "0003.png") as image:
        text = dict(image.text)  # type: ignore[attr-defined]
    about = json.loads(text["cgrpo"])
    assert text["prompt"] == about["prompt"] == PROMPTS[1]
    assert json.loads((drawn / "0003.json").read_text(encoding="utf-8")) == about
    assert (about["generator"], about["number"], about["seed"], about["steps"]) == ("run", 1, 0, 4)
    assert about["checkpoint"] == 2 and about["adapter"] is True
    assert [reference["name"] for reference in about["references"]] == ["toy.png"]
    assert json.loads((drawn / "0003-base.json").read_text(encoding="utf-8"))["adapter"] is False
    assert str(toy.parent) not in text["cgrpo"]


def test_what_it_says_is_enough_to_draw_it_again(drawn: Path, run: Path, toy: Path, tmp_path: Path) -> None:
    about = json.loads((drawn / "0003.json").read_text(encoding="utf-8"))
    options = [
        "--seed",
        about["seed"],
        "--steps",
        about["steps"],
        "--size",
        f"{about['height']}x{about['width']}",
    ]
    assert (
        generate(run, "--reference", toy, "--count", 2, *options, "--out", tmp_path, prompts=PROMPTS[1:]) == 0
    )
    assert (pixels(tmp_path / "0001.png") - pixels(drawn / "0003.png")).abs().max() <= 1 / 255


def test_base_draws_what_the_grid_compares_with(drawn: Path, run: Path, toy: Path, tmp_path: Path) -> None:
    assert generate(run, "--base", "--reference", toy, "--out", tmp_path) == 0
    assert (pixels(tmp_path / "0000.png") - pixels(drawn / "0000-base.png")).abs().max() <= 1 / 255
    assert (pixels(tmp_path / "0000.png") - pixels(drawn / "0000.png")).abs().max() > 0.02


def test_nothing_is_overwritten(run: Path, toy: Path, tmp_path: Path) -> None:
    assert generate(run, "--reference", toy, "--out", tmp_path) == 0
    before = (tmp_path / "0000.png").read_bytes()
    assert generate(run, "--reference", toy, "--seed", 1, "--out", tmp_path) == 0
    assert (tmp_path / "0000.png").read_bytes() == before
    assert (tmp_path / "0001.png").read_bytes() != before


def test_every_reference_counts(run: Path, toy: Path, tmp_path: Path) -> None:
    assert generate(run, "--reference", toy, "--out", tmp_path) == 0
    other = tmp_path / "grey.png"
    Image.new("RGB", (64, 64), "grey").save(other)
    assert generate(run, "--reference", toy, "--reference", other, "--out", tmp_path) == 0
    assert (pixels(tmp_path / "0000.png") - pixels(tmp_path / "0001.png")).abs().max() > 0.02


def test_the_grid_shows_the_files_enlarged_without_smoothing(drawn: Path, toy: Path) -> None:
    grid = np.asarray(Image.open(drawn / "0000-grid.png").convert("RGB"))
    for name in (toy, drawn / "0000-base.png", drawn / "0001.png", drawn / "0002.png"):
        picture = np.asarray(Image.open(name)).repeat(4, axis=0).repeat(4, axis=1)
        assert contains(grid, picture), name


def contains(sheet: np.ndarray, picture: np.ndarray) -> bool:
    height, width = picture.shape[:2]
    corners = np.argwhere((sheet == picture[0, 0]).all(-1))
    found = (sheet[top : top + height, left : left + width] for top, left in corners)
    return any(part.shape == picture.shape and bool((part == picture).all()) for part in found)


def test_a_long_prompt_is_wrapped_inside_the_grid() -> None:
    row = [Image.new("RGB", (64, 64), "red")]
    short = compose_grid(["reference"], [GridRow("a toy", row)])
    long = compose_grid(["reference"], [GridRow("a toy in a very long prompt " * 8, row)])
    assert long.width == short.width and long.height > short.height + 60
    margin = np.asarray(long)[:, -10:]
    assert (margin == 255).all()  # no letter leaves the sheet


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--size", "60x64"], "model.height: got 60, must be a multiple of 16"),
        (["--size", "big"], "--size 'big'"),
        (["--set", "model.guidence=3"], "did you mean model.guidance?"),
        (["--lora", "somewhere"], "has an adapter of its own"),
        (["--out", "{toy}/made"], "cannot write to"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_before_any_model_loads(
    options: list[str], expected: str, run: Path, toy: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr("customized_grpo.generation.opening.load_policy", load)
    out = [] if "--out" in options else ["--out", tmp_path / "made"]
    assert generate(run, "--reference", toy, *[o.format(toy=toy) for o in options], *out) == 2
    assert expected in capsys.readouterr().err


def test_a_misspelt_run_is_not_looked_for_on_the_hub(
    run: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(run.parent / "rum", "--reference", toy) == 2
    assert f"Runs here: {run}." in capsys.readouterr().err
    assert generate(run.parent, "--reference", toy) == 2
    assert "neither the folder of a run nor a model" in capsys.readouterr().err
