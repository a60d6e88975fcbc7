"""`cgrpo data` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from commands import status


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, subject in enumerate(("cat", "dog", "red_cup")):
        (tmp_path / "photos" / subject).mkdir(parents=True)
        Image.new("RGB", (12, 8), (60 * number, 0, 0)).save(tmp_path / "photos" / subject / "1.png")
    (tmp_path / "prompts.txt").write_text("a {} on the beach\na red {}\n")
    return tmp_path


def convert(photos: Path, *more: str) -> int:
    prompts = ("--prompts", str(photos / "prompts.txt"))
    return status("data", "convert", "folder", str(photos / "photos"), str(photos / "out"), *prompts, *more)


def test_photos_become_a_data_set_that_the_check_accepts(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(photos, "--held-out", "2", "--json", str(photos / "made.json")) == 0
    printed = capsys.readouterr().out
    assert "rows:                6 (train 2, held_out 4)\n" in printed
    assert "    12 x 8: 3\n" in printed and printed.endswith(f"\nwritten: {photos / 'out'}\n")
    assert json.loads((photos / "made.json").read_text())["references_per_row"] == {"1": 6}
    assert status("data", "check", str(photos / "out"), "--json", str(photos / "found.json")) == 0
    assert json.loads((photos / "found.json").read_text())["problems"] == []
    assert "rows:                6 (train.jsonl 2, held_out.jsonl 4)" in capsys.readouterr().out


def test_problems_are_printed_and_make_the_status_2(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(photos) == 0
    manifest = photos / "out/manifest.jsonl"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines, lines[0], "{}"]) + "\n")
    capsys.readouterr()
    assert status("data", "check", str(photos / "out"), "--json", str(photos / "found.json")) == 2
    printed = capsys.readouterr()
    assert "problem: manifest.jsonl line 7: id 'cat-000' was used on line 1 already" in printed.out
    assert printed.err == "error: 4 problems found; see above\n"
    assert len(json.loads((photos / "found.json").read_text())["problems"]) == 4


def test_a_held_out_manifest_is_compared(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(photos, "--held-out", "2") == 0
    out = photos / "out"
    held_out = ("--held-out", str(out / "held_out.jsonl"))
    assert status("data", "check", str(out / "train.jsonl"), *held_out) == 0
    capsys.readouterr()
    assert status("data", "check", str(out / "manifest.jsonl"), *held_out, "--require-masks") == 2
    printed = capsys.readouterr().out
    assert "has no `masks`, which the reward needs" in printed
    assert status("data", "check", str(out / "manifest.jsonl"), *held_out) == 2
    assert "is in manifest.jsonl and in held_out.jsonl" in capsys.readouterr().out


def test_a_source_is_checked_without_converting_it(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "photos/dog/1.png").write_bytes(b"<html>")
    source = (str(photos / "photos"), "--layout", "folder", "--prompts", str(photos / "prompts.txt"))
    assert status("data", "check", *source) == 2
    printed = capsys.readouterr()
    assert "problem: row 3: " in printed.out and "is a web page" in printed.out
    assert sorted(path.name for path in photos.iterdir()) == ["photos", "prompts.txt"]
    assert status("data", "check", *source, "--require-masks") == 2
    assert "are about manifests" in capsys.readouterr().err


def test_bad_rows_stop_a_conversion_unless_skipped(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "photos/dog/1.png").write_bytes(b"")
    assert convert(photos) == 2
    assert "2 bad rows" in capsys.readouterr().err and not (photos / "out").exists()
    assert convert(photos, "--skip-bad") == 0
    assert "left out:            2 rows: bad" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "folder", "photos", "out", "--held-out", "many"], "--held-out many"),
        (["convert", "folder", "photos", "out"], "--prompts is missing"),
        (["convert", "folder", "photos", "out", "--min-score", "3"], "--min-score: not an option"),
        (["convert", "folder", "photos", "out", "--json", "no/folder/x.json"], "--json no/folder/x.json"),
        (["check", "photos"], "has no manifest.jsonl"),
        (["check", "photos", "--prompts", "prompts.txt"], "options of a layout, but no --layout"),
        (["check", "missing.jsonl"], "cannot read manifest missing.jsonl"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_message_and_status_2(
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(photos)
    assert status("data", *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == "" and not (photos / "out").exists()


def test_a_layout_that_is_none_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("data", "convert", "dreamboth", "a", "b") == 2
    assert "dreambench" in capsys.readouterr().err
