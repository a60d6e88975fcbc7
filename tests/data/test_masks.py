"""Masks by a real, tiny segmenter: what is bright is the subject."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

import tiny_onnx
from customized_grpo.cli import data_masks
from customized_grpo.data import masks as masks_module
from customized_grpo.data.manifest import load_manifest
from customized_grpo.data.masks import LAYOUTS, Segmenter, SegmenterLayout, make_masks
from customized_grpo.errors import UserError

PLAIN = SegmenterLayout(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), sigmoid=False)


def photo(path: Path, *, width: int = 48, height: int = 64, bright: bool = True) -> Path:
    """Dark, with a bright right half."""
    pixels = np.full((height, width, 3), 20, np.uint8)
    if bright:
        pixels[:, width // 2 :] = 240
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "data"
    for name in ("dog/1.png", "dog/1.jpg", "cat/1.png"):
        photo(home / name)
    Image.new("L", (48, 64), 255).save(home / "cat" / "own.png")
    rows = [
        {"id": "a", "prompt": "p", "references": ["dog/1.png", "dog/1.jpg"]},
        {"id": "b", "prompt": "p", "references": ["cat/1.png"], "masks": ["cat/own.png"]},
        {"id": "c", "prompt": "q", "references": ["dog/1.png"], "target": "dog/1.jpg", "subject": "dog"},
    ]
    (home / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


@pytest.fixture
def segmenter(tmp_path: Path) -> Segmenter:
    return Segmenter(tiny_onnx.save_segmenter(tmp_path / "bright.onnx"), PLAIN)


def run(folder: Path, segmenter: Segmenter, out: str = "masked.jsonl") -> Path:
    return make_masks(folder / "manifest.jsonl", segmenter, folder / out)


def test_every_reference_gets_a_mask_of_its_size(folder: Path, segmenter: Segmenter) -> None:
    rows = load_manifest(run(folder, segmenter), require_masks=True)
    home = folder.resolve()
    made = (home / "masks/dog/1.png.png", home / "masks/dog/1.jpg.png")
    assert [row.masks for row in rows] == [made, (home / "cat/own.png",), made[:1]]
    before = load_manifest(folder / "manifest.jsonl", require_masks=False)
    assert [replace(row, masks=()) for row in rows] == [replace(row, masks=()) for row in before]
    for file in made:
        mask = np.asarray(Image.open(file))
        assert mask.shape == (64, 48) and mask.dtype == np.uint8
        assert (mask[:, :23] == 0).all() and (mask[:, 25:] == 255).all()


@pytest.mark.parametrize("size", [24, 64, 100])
def test_the_size_is_the_models_or_the_layouts(tmp_path: Path, size: int) -> None:
    model = tiny_onnx.save_segmenter(tmp_path / "open.onnx", size="side")
    found = Segmenter(model, replace(PLAIN, size=size))
    assert (found.model.height, found.model.width) == (size, size)
    image = Image.open(photo(tmp_path / "p.png", width=301, height=77))
    mask = np.asarray(found(image))
    assert mask.shape == (77, 301)
    edge = mask.argmax(1)
    assert abs(edge - 150).max() <= 301 / size


def test_the_image_is_normalised_and_the_output_squashed(tmp_path: Path) -> None:
    # grey .5 becomes (.5 - .3) / .1 = 2, and 10 * 2 - 20.5 = -.5; sigmoid(-.5) = .378
    model = tiny_onnx.save_segmenter(tmp_path / "m.onnx", scale=10, shift=-20.5)
    layout = SegmenterLayout(32, (0.3, 0.3, 0.3), (0.1, 0.1, 0.1), sigmoid=True, threshold=0.37)
    grey = Image.new("RGB", (40, 40), (128, 127, 128))
    assert np.asarray(Segmenter(model, layout)(grey)).min() == 255
    assert np.asarray(Segmenter(model, replace(layout, threshold=0.42))(grey)).max() == 0


def test_each_channel_has_its_own_mean_and_std(tmp_path: Path) -> None:
    model = tiny_onnx.save_segmenter(tmp_path / "m.onnx")
    colour = Image.new("RGB", (8, 8), (255, 51, 0))
    layout = replace(PLAIN, mean=(0.5, 0.1, 0.0), std=(1.0, 0.25, 1.0))  # mean of .5, .4 and 0 is .3
    assert np.asarray(Segmenter(model, replace(layout, threshold=0.29))(colour)).min() == 255
    assert np.asarray(Segmenter(model, replace(layout, threshold=0.31))(colour)).max() == 0


def test_values_that_are_no_shares_are_refused(tmp_path: Path) -> None:
    model = tiny_onnx.save_segmenter(tmp_path / "m.onnx", scale=30, shift=-10)
    with pytest.raises(UserError, match=r"are in \[0, 1\], these are in \[20, 20\]"):
        Segmenter(model, PLAIN)(Image.new("RGB", (8, 8), "white"))


def test_a_second_call_makes_only_what_is_missing(
    folder: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, segmenter)
    kept, lost = folder / "masks/dog/1.png.png", folder / "masks/dog/1.jpg.png"
    before = kept.stat().st_mtime_ns
    lost.unlink()
    made: list[Path] = []
    make = masks_module._make
    monkeypatch.setattr(masks_module, "_make", lambda *a: (made.append(a[1]), make(*a))[1])
    run(folder, segmenter, "again.jsonl")
    assert [file.name for file in made] == [lost.name] and lost.exists()
    assert kept.stat().st_mtime_ns == before


def test_empty_masks_are_listed_at_the_end_and_what_was_found_stays(
    folder: Path, segmenter: Segmenter
) -> None:
    for name in ("dog/1.png", "cat/2.png"):
        photo(folder / name, bright=False)
    with (folder / "manifest.jsonl").open("a") as file:
        file.write(json.dumps({"id": "d", "prompt": "p", "references": ["cat/2.png"]}) + "\n")
    with pytest.raises(UserError, match="nothing stands out in 2 photos") as caught:
        run(folder, segmenter)
    assert "dog/1.png (row 'a' and 1 more)" in str(caught.value)
    assert "cat/2.png (row 'd')" in str(caught.value)
    assert not (folder / "masked.jsonl").exists() and not (folder / "masks/dog/1.png.png").exists()
    assert (folder / "masks/dog/1.jpg.png").exists()
    for name in ("dog/1.png", "cat/2.png"):  # drawn by hand, as the hint says
        (folder / "masks" / name).parent.mkdir(exist_ok=True)
        Image.new("L", (48, 64), 255).save(folder / "masks" / f"{name}.png")
    assert len(load_manifest(run(folder, segmenter), require_masks=True)) == 4


def test_a_mask_is_written_whole_or_not_at_all(
    folder: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            run(folder, segmenter)
    assert not (folder / "masks/dog/1.png.png").exists()
    assert len(load_manifest(run(folder, segmenter), require_masks=True)) == 3


def test_masks_of_another_segmenter_are_not_mixed_in(
    folder: Path, segmenter: Segmenter, tmp_path: Path
) -> None:
    run(folder, segmenter)
    others = [
        Segmenter(tiny_onnx.save_segmenter(tmp_path / "other.onnx", scale=0.9), PLAIN),
        Segmenter(segmenter.model.path, replace(PLAIN, threshold=0.6)),
    ]
    for number, other in enumerate(others):
        with pytest.raises(UserError, match="holds masks of another segmenter"):
            run(folder, other, f"{number}.jsonl")


def test_a_file_in_a_masks_place_that_is_none_is_named(folder: Path, segmenter: Segmenter) -> None:
    run(folder, segmenter)
    mask = folder / "masks/dog/1.png.png"
    Image.new("L", (4, 4), 255).save(mask)
    with pytest.raises(UserError, match=r"1\.png\.png has not the size of"):
        run(folder, segmenter, "2.jsonl")


@pytest.mark.parametrize("content", [b"", b"{", b'{"sha256": NaN', b"[]", b"\xff\xfe", b"\0" * 4096])
def test_damaged_files_are_set_aside_and_the_work_goes_on(
    folder: Path, segmenter: Segmenter, content: bytes
) -> None:
    run(folder, segmenter)
    stamp, mask = folder / "masks/segmenter.json", folder / "masks/dog/1.png.png"
    whole = stamp.read_bytes(), mask.read_bytes()
    for file in (stamp, mask):
        file.write_bytes(content)
    lines: list[str] = []
    make_masks(folder / "manifest.jsonl", segmenter, folder / "again.jsonl", on_progress=lines.append)
    assert (stamp.read_bytes(), mask.read_bytes()) == whole
    assert (folder / "masks/dog/1.png.png.damaged").read_bytes() == content  # it may have been drawn by hand
    assert sum("set aside" in line for line in lines) == 2


def test_a_photo_that_was_replaced_gets_a_new_mask(folder: Path, segmenter: Segmenter) -> None:
    run(folder, segmenter)
    mask = folder / "masks/dog/1.png.png"
    before = mask.read_bytes()
    Image.open(folder / "dog/1.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "dog/1.png")
    run(folder, segmenter, "again.jsonl")
    assert mask.read_bytes() != before and np.asarray(Image.open(mask))[:, :20].min() == 255


def test_a_lost_stamp_does_not_let_another_segmenter_in(
    folder: Path, segmenter: Segmenter, tmp_path: Path
) -> None:
    run(folder, segmenter)
    (folder / "masks/segmenter.json").write_bytes(b"")
    other = Segmenter(tiny_onnx.save_segmenter(tmp_path / "dark.onnx", scale=-1, shift=1), PLAIN)
    with pytest.raises(UserError, match="holds masks of another segmenter"):
        run(folder, other, "other.jsonl")


def test_a_number_that_is_not_finite_is_found_before_any_mask_is_made(
    folder: Path, segmenter: Segmenter
) -> None:
    with (folder / "manifest.jsonl").open("a") as file:
        file.write('{"id": "d", "prompt": "p", "references": ["cat/1.png"], "meta": {"score": 1e999}}\n')
    with pytest.raises(UserError, match="line 4: holds a number that is not finite"):
        run(folder, segmenter)
    assert not (folder / "masks").exists()


def test_nothing_is_overwritten_and_paths_stay_relative(folder: Path, segmenter: Segmenter) -> None:
    with pytest.raises(UserError, match="manifest.jsonl already exists"):
        run(folder, segmenter, "manifest.jsonl")
    with pytest.raises(UserError, match="is not in the folder of"):
        make_masks(folder / "manifest.jsonl", segmenter, folder.parent / "masked.jsonl")
    assert not (folder / "masks").exists()


def test_bad_rows_are_listed_before_any_mask_is_made(folder: Path, segmenter: Segmenter) -> None:
    (folder / "dog/1.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(UserError, match="2 bad rows"):
        run(folder, segmenter)
    assert not (folder / "masks").exists()


def test_a_model_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"first output of a segmenter is \[1, 1, 112, 112\], not \[1, 8\]"):
        Segmenter(tiny_onnx.save_recogniser(tmp_path / "r.onnx"), PLAIN)


@pytest.mark.parametrize("changes", [{"threshold": 0.0}, {"threshold": 1.0}, {"std": (1.0, 0.0, 1.0)}])
def test_settings_that_make_no_sense_are_refused(changes: Any) -> None:
    with pytest.raises(UserError, match="must be"):
        replace(PLAIN, **changes)


def call(*arguments: str) -> None:
    app = typer.Typer()
    app.command()(data_masks.masks)
    app(args=list(arguments), standalone_mode=False)


def test_the_command_writes_masks_and_a_manifest(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_onnx.save_segmenter(tmp_path / "m.onnx")
    arguments = ["--mean", "0", "0", "0", "--std", "1", "1", "1", "--threshold", "0.4"]
    call(str(folder / "manifest.jsonl"), "--segmenter", str(model), "--layout", "isnet", *arguments)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("1 of 2: ") and printed[-1] == str(folder / "manifest.masked.jsonl")
    assert len(load_manifest(folder / "manifest.masked.jsonl", require_masks=True)) == 3
    stamp = json.loads((folder / "masks/segmenter.json").read_text())
    assert stamp["mean"] == [0, 0, 0] and stamp["threshold"] == 0.4 and stamp["size"] == [32, 32]


def test_the_command_knows_every_layout() -> None:
    assert [name.value for name in data_masks.LayoutName] == list(LAYOUTS)


def test_the_command_names_a_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such manifest\nGive the \.jsonl file"):
        call(str(tmp_path / "m.jsonl"), "--segmenter", "s.onnx")
