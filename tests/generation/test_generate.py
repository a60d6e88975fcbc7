"""`cgrpo generate` as a user meets it: files, what they say of themselves, the grid, and refusals."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from customized_grpo.cli.main import main
from customized_grpo.data.fitting import Fitting
from customized_grpo.data.images import open_image, to_tensor
from customized_grpo.errors import UserError
from customized_grpo.generation import lettering
from customized_grpo.generation.generate import Request, _references, _Writer
from customized_grpo.generation.grid import GridRow, compose_grid
from customized_grpo.generation.lettering import lettered

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
    return tmp_path_factory.mktemp("images")


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


def test_images_are_numbered_prompt_by_prompt_with_those_of_the_base(drawn: Path) -> None:
    numbers = [f"{number:04d}" for number in range(4)]
    expected = {f"{n}{end}" for n in numbers for end in (".png", ".json", "-base.png", "-base.json")}
    assert {path.name for path in drawn.iterdir()} == {*expected, "0000-grid.png"}


def test_an_image_says_how_it_was_made(drawn: Path, run: Path, toy: Path) -> None:
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
        image = np.asarray(Image.open(name)).repeat(4, axis=0).repeat(4, axis=1)
        assert contains(grid, image), name


def contains(sheet: np.ndarray, image: np.ndarray) -> bool:
    height, width = image.shape[:2]
    corners = np.argwhere((sheet == image[0, 0]).all(-1))
    found = (sheet[top : top + height, left : left + width] for top, left in corners)
    return any(part.shape == image.shape and bool((part == image).all()) for part in found)


def test_a_prompt_that_the_generator_cuts_is_told(
    run: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = (PROMPTS[0], "a red hat on the left " * 9)
    assert generate(run, "--reference", toy, "--out", tmp_path / "out", prompts=prompts) == 0
    told = capsys.readouterr().err
    assert "note: the generator's T5 reads 18 tokens" in told
    assert "1 of 2 prompts are longer" in told and "(prompt 2)" in told


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


def test_bytes_that_are_not_utf8_are_refused_in_prompts_and_escaped_in_names(
    run: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / os.fsdecode(b"\xb9\xb7.png")
    odd.write_bytes(toy.read_bytes())
    assert generate(run, "--reference", odd, "--out", tmp_path / "out") == 0
    about = json.loads((tmp_path / "out/0000.json").read_text())
    assert about["references"][0]["name"] == r"\udcb9\udcb7.png"
    assert generate(run, "--reference", toy, prompts=("a \udcb9",)) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_a_misspelt_run_is_not_looked_for_on_the_hub(
    run: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(run.parent / "rum", "--reference", toy) == 2
    assert f"Runs here: {run}." in capsys.readouterr().err
    assert generate(run.parent, "--reference", toy) == 2
    assert "neither the folder of a run nor a model" in capsys.readouterr().err


def request(toy: Path, *masks: Path) -> Request:
    return Request(["a", "b"], [toy], masks)


def test_two_calls_at_once_share_a_folder_without_overwriting(toy: Path, tmp_path: Path) -> None:
    colours = ["red", "lime", "blue", "grey"]
    images = [Image.new("RGB", (8, 8), colour) for colour in colours]
    first = _Writer(tmp_path, request(toy), {})
    second = _Writer(tmp_path, request(toy), {})  # both have seen an empty folder
    (tmp_path / "0000.json").write_text("mine")
    files = []
    for start in (0, 2):
        files += first.write(images[start : start + 1])
        files += second.write(images[start + 1 : start + 2])
    assert [file.name for file in files] == ["0001.png", "0002.png", "0003.png", "0004.png"]
    for file, image in zip(files, images, strict=True):
        assert open_image(file).getpixel((0, 0)) == image.getpixel((0, 0))
    assert first.numbers == [1, 3] and second.numbers == [2, 4]
    assert first.write(images[:2], is_base=True) == [tmp_path / "0001-base.png", tmp_path / "0003-base.png"]
    assert (tmp_path / "0000.json").read_text() == "mine"


def test_a_number_taken_in_the_last_moment_is_left_to_the_other(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = _Writer(tmp_path, request(toy), {})
    monkeypatch.setattr(writer, "_next_number", lambda: 0)
    Image.new("RGB", (8, 8), "lime").save(tmp_path / "0000.png")
    before = (tmp_path / "0000.png").read_bytes()
    assert writer.write([Image.new("RGB", (8, 8))]) == [tmp_path / "0001.png"]
    assert (tmp_path / "0000.png").read_bytes() == before


def test_the_ten_thousandth_image_does_not_overwrite_the_thousandth(toy: Path, tmp_path: Path) -> None:
    for name in ("1001.png", "10000.png", "9999-base.png"):
        (tmp_path / name).write_bytes(b"old")
    assert _Writer(tmp_path, request(toy), {}).write([Image.new("RGB", (8, 8))])[0].name == "10001.png"
    assert (tmp_path / "1001.png").read_bytes() == b"old"


def test_a_subject_that_the_cut_removes_is_said(toy: Path, tmp_path: Path) -> None:
    mask = Image.new("L", (64, 16))
    mask.paste(255, (0, 0, 8, 16))
    mask.save(tmp_path / "m.png")
    photo = Image.new("RGB", (64, 16))
    crop = Fitting(16, 16, "crop")
    with pytest.raises(
        UserError, match=r"m.png: nothing of the subject is left when .*toy.png gets its size"
    ):
        _references(request(toy, tmp_path / "m.png"), [photo], [mask], crop)
    for fitting in (Fitting(16, 64, "crop"), Fitting(16, 16, "pad"), Fitting(16, 16)):
        assert len(_references(request(toy, tmp_path / "m.png"), [photo], [mask], fitting)) == 1


def test_a_reference_that_is_cut_is_noted_before_anything_is_drawn(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (96, 64), "red").save(tmp_path / "wide.png")
    crop = ["--set", "model.reference_fit=crop"]
    assert generate(run, "--reference", tmp_path / "wide.png", *crop, "--out", tmp_path / "a") == 0
    note = capsys.readouterr().err
    assert "note: 1 of 1 references lose" in note and "(64 x 96): 33%; model.reference_fit=whole" in note
    pad = ["--set", "model.reference_fit=pad"]
    assert generate(run, "--reference", tmp_path / "wide.png", *pad, "--out", tmp_path / "b") == 0
    assert "note:" not in capsys.readouterr().err
    assert (tmp_path / "a/0000.png").read_bytes() != (tmp_path / "b/0000.png").read_bytes()


class Latin:
    """A font that has the letters of English, and boxes for everything else."""

    def getmask(self, text: str) -> Any:
        return Image.new("L", (8, 8), ord(text) if text.isascii() else 0).im

    def getlength(self, text: str) -> float:
        return 8.0 * len(text)


def test_what_no_font_can_write_is_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering.ImageFont, "load_default", lambda _: Latin())
    monkeypatch.setattr(lettering, "_font_files", lambda: ())
    assert lettered("a toy", 17, "0003.json")[0] == "a toy"
    assert lettered("🐶 a toy \x07", 17, "0003.json")[0] == "a toy (prompt in 0003.json)"
    assert lettered("雪", 17, "0003.json")[0] == "(prompt in 0003.json)"


def test_the_first_font_that_has_every_character_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Wide(Latin):
        def getmask(self, text: str) -> Any:
            return Image.new("L", (8, 8), 1 + ord(text) % 250 if text != "\U0010fffe" else 0).im

    fonts = {"latin.ttf": Latin(), "wide.ttf": Wide()}
    monkeypatch.setattr(lettering.ImageFont, "load_default", lambda _: Latin())
    monkeypatch.setattr(lettering.ImageFont, "truetype", lambda file, _: fonts[file.name])
    monkeypatch.setattr(lettering, "_font_files", lambda: (Path("latin.ttf"), Path("wide.ttf")))
    assert lettered("ein Spielzeug über 雪", 17, "x.json") == ("ein Spielzeug über 雪", fonts["wide.ttf"])


def test_a_prompt_without_spaces_stays_inside_the_sheet() -> None:
    grid = compose_grid(["reference"], [GridRow("ü" * 300, [Image.new("RGB", (64, 64), "red")])])
    assert grid.width == 256 + 40 and (np.asarray(grid)[:, -10:] == 255).all()
