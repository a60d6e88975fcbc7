"""Conversions from end to end: every layout becomes a folder that training reads."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sources
from customized_grpo.data.adapters.base import Options
from customized_grpo.data.adapters.names import MaskChoice
from customized_grpo.data.adapters.registry import LAYOUTS
from customized_grpo.data.convert import Choices, check_source, convert
from customized_grpo.data.images import open_image, open_mask
from customized_grpo.data.manifest import Row, load_manifest
from customized_grpo.data.split import HeldOut
from customized_grpo.data.survey import Survey
from customized_grpo.errors import UserError
from processes import PATIENCE_S


def run(name: str, source: Path, out: Path, options: dict[str, Any] | None = None, **choices: Any) -> Survey:
    return convert(LAYOUTS[name], source, out, Options(**(options or {})), Choices(**choices))


def rows_of(out: Path, name: str = "manifest.jsonl", *, require_masks: bool = False) -> list[Row]:
    return load_manifest(out / name, require_masks=require_masks)


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def published(tmp_path: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """A source and its options in every layout."""
    home = tmp_path / "published"
    home.mkdir()
    (home / "prompts.txt").write_text("a {} on the beach\n")
    records = [sources.subjects200k_row(number) for number in range(3)]
    hub = {}
    if importlib.util.find_spec("datasets") is not None:
        hub["hub"] = (sources.hub(home / "hub"), {"columns": "prompt=caption,references=image"})
    return hub | {
        "syncd": (sources.syncd(home / "syncd"), {}),
        "syncd-pairs": (sources.syncd_pairs(home / "pairs"), {"images": home / "pairs/images"}),
        "subjects200k": (sources.subjects200k_folder(home / "subjects", records), {}),
        "uno-1m": (sources.uno_1m(home / "uno1m", [4.0, 3.5, 1.0]), {}),
        "uno": (sources.uno(home / "uno"), {}),
        "folder": (sources.photos(home / "photos"), {"prompts": home / "prompts.txt"}),
        "captions": (sources.captions(home / "captions"), {}),
        "dreambench": (sources.dreambench(home / "db", {"can": "can", "cat2": "cat", "cup": "cup"}), {}),
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_becomes_a_manifest_that_training_reads(
    name: str, tmp_path: Path, published: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    if name == "hub":
        pytest.importorskip("datasets")
    source, options = published[name]
    found = run(name, source, tmp_path / "out", options)
    rows = rows_of(tmp_path / "out")
    expected = {"syncd": 9, "uno-1m": 2, "folder": 2, "dreambench": 75}.get(name, 3)
    assert len(rows) == sum(found.rows.values()) == expected
    assert not found.problems or name == "subjects200k"  # whose generated pairs repeat their colours
    assert rows[0].target is not None
    assert bool(rows[0].masks) is (name in ("syncd", "folder"))
    assert all(row.subject for row in rows)
    record = json.loads((tmp_path / "out/conversion.json").read_text())
    assert record["layout"] == name and record["licence"] and record["rows"] == expected


def test_images_are_copied_byte_for_byte_and_once(
    tmp_path: Path, published: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    source, options = published["dreambench"]
    run("dreambench", source, tmp_path / "out", options)
    copied = tree(tmp_path / "out/images")
    assert copied == {f"{subject}/0{photo}.jpg" for subject in ("can", "cat2", "cup") for photo in (0, 1)}
    for name in copied:
        assert (tmp_path / "out/images" / name).read_bytes() == (source / name).read_bytes()
        assert (tmp_path / "out/images" / name).stat().st_nlink == 1


def test_link_makes_hard_links(tmp_path: Path, published: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    source, options = published["folder"]
    run("folder", source, tmp_path / "out", options, link=True)
    assert os.path.samefile(tmp_path / "out/images/dog/00.png", source / "dog/00.png")
    assert os.path.samefile(tmp_path / "out/masks/dog/00.mask.png", source / "dog/00.mask.png")


def test_a_file_system_that_cannot_link_says_so_and_leaves_nothing(
    tmp_path: Path, published: dict[str, tuple[Path, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    source, options = published["folder"]
    with pytest.raises(UserError, match="Invalid cross-device link") as caught:
        run("folder", source, tmp_path / "out", options, link=True)
    assert caught.value.hint is not None and "--link" in caught.value.hint
    assert {path.name for path in tmp_path.iterdir()} == {"published"}


@pytest.mark.parametrize(
    ("call", "link", "code", "hint"),
    [
        ("shutil.copyfile", False, errno.ENOSPC, "Free some space, or choose another place."),
        ("os.link", True, errno.ENOSPC, "Free some space, or choose another place."),
        ("os.mkdir", False, errno.EROFS, "Choose another place, or change the permissions or the mount."),
    ],
)
def test_a_disk_that_refuses_is_one_message_with_a_way_out(
    tmp_path: Path,
    published: dict[str, tuple[Path, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    link: bool,
    code: int,
    hint: str,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    source, options = published["folder"]
    with monkeypatch.context() as patched:
        patched.setattr(call, refuse)
        with pytest.raises(UserError, match=rf"cannot write .*: {os.strerror(code)}") as caught:
            run("folder", source, tmp_path / "out", options, link=link)
    assert caught.value.hint == hint


def test_held_out_subjects_are_ready_for_training(
    tmp_path: Path, published: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    source, options = published["dreambench"]
    found = run("dreambench", source, tmp_path / "out", options, held_out=HeldOut.parse("2"), seed=3)
    train, held_out = rows_of(tmp_path / "out", "train.jsonl"), rows_of(tmp_path / "out", "held_out.jsonl")
    assert len(train) == 25 and len(held_out) == 50
    assert {row.subject for row in train}.isdisjoint({row.subject for row in held_out})
    assert sorted((*train, *held_out), key=lambda row: row.id) == sorted(
        rows_of(tmp_path / "out"), key=lambda row: row.id
    )
    assert list(found.rows.items()) == [("train", 25), ("held_out", 50)] and found.subjects == {
        "train": 1,
        "held_out": 2,
    }


def test_two_conversions_are_the_same(
    tmp_path: Path, published: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    def content(out: Path) -> dict[str, str]:
        return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in tree(out)}

    source, options = published["syncd"]
    for out in ("one", "two"):
        run("syncd", source, tmp_path / out, options, held_out=HeldOut.parse("2"))
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_the_halves_of_subjects200k_are_cut_without_their_margins(
    tmp_path: Path, published: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    run("subjects200k", published["subjects200k"][0], tmp_path / "out")
    row = rows_of(tmp_path / "out")[0]
    assert row.target is not None
    for path, colour in ((row.references[0], (254, 0, 0)), (row.target, (0, 0, 254))):
        image = open_image(path)
        assert image.size == (512, 512)
        assert np.abs(np.asarray(image).astype(int) - colour).max() <= 2  # JPEG; a white margin would show


def test_parquet_bytes_become_images(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    wrong = sources.encoded(Image.new("RGB", (1024, 512)))
    contents = [sources.encoded(sources.composite("lime", "red")), wrong, b"not an image"]
    rows = [
        sources.subjects200k_row(number, image={"bytes": content, "path": "x.jpg"})
        for number, content in enumerate(contents)
    ]
    (tmp_path / "source").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "source/train.parquet")
    found = run("subjects200k", tmp_path / "source", tmp_path / "out", skip_bad=True)
    assert found.dropped == {"bad": 2}
    (row,) = rows_of(tmp_path / "out")
    assert np.asarray(open_image(row.references[0]))[..., 1].min() > 250
    bad = json.loads((tmp_path / "out/conversion.json").read_text())["bad"]
    assert bad[0] == {"number": 2, "reason": "its image is 1024 x 512 pixels, not 1056 x 528"}
    assert bad[1]["number"] == 3 and "pair-000003-left.jpg is not an image" in bad[1]["reason"]


def test_the_masks_of_syncd_count_every_value_above_zero_and_fit_their_image(
    tmp_path: Path, published: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    run("syncd", published["syncd"][0], tmp_path / "out")
    row = rows_of(tmp_path / "out", require_masks=True)[0]
    mask = np.asarray(open_mask(row.masks[0]))
    stored = np.asarray(Image.open(published["syncd"][0] / "masks" / f"{row.references[0].stem}.jpg"))
    assert mask.shape == (16, 16) and set(np.unique(mask)) <= {0, 255}
    assert np.array_equal(mask, np.kron((stored > 0) * 255, np.ones((4, 4))))
    assert mask[:, :8].min() == 255 and mask.min() == 0


def test_a_syncd_mask_that_marks_nothing_is_a_bad_row(
    tmp_path: Path, published: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    source = published["syncd"][0]
    sources.save(source / "masks/cat_0_0_0_1.jpg", 0, (4, 4), "L")
    with pytest.raises(UserError, match="row 1: .*cat_0_0_0_1.jpg: the mask marks no pixel"):
        run("syncd", source, tmp_path / "out")
    assert len(rows_of_run_without_masks(source, tmp_path / "bare")) == 9


def rows_of_run_without_masks(source: Path, out: Path) -> list[Row]:
    run("syncd", source, out, masks=MaskChoice.none)
    rows = rows_of(out)
    assert not any(row.masks for row in rows) and not (out / "masks").exists()
    return rows


def test_masks_are_made_of_transparency(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    sources.cut_out(folder / "dog/a.png")
    sources.cut_out(folder / "dog/a.webp")
    (tmp_path / "prompts.txt").write_text("a {}\na red {}\n")
    options = {"prompts": tmp_path / "prompts.txt", "reference": "all"}
    run("folder", folder, tmp_path / "out", options, masks=MaskChoice.alpha)
    rows = rows_of(tmp_path / "out", require_masks=True)
    assert len(set(rows[0].masks)) == 2
    for mask in rows[0].masks:
        assert np.asarray(open_mask(mask)).tolist() == [[255] * 4 + [0] * 4] * 6


def test_a_reference_without_transparency_makes_no_mask(
    tmp_path: Path, published: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    with pytest.raises(UserError, match="dog/1.png has no transparency"):
        run("uno", published["uno"][0], tmp_path / "out", masks=MaskChoice.alpha)
    with pytest.raises(UserError, match="cut from an image without transparency"):
        run("subjects200k", published["subjects200k"][0], tmp_path / "out", masks=MaskChoice.alpha)


def test_a_mask_of_another_size_is_one_bad_file(tmp_path: Path) -> None:
    folder = sources.photos(tmp_path / "photos", ("dog",))
    sources.save(folder / "dog/00.mask.png", 255, (5, 5), "L")
    (tmp_path / "prompts.txt").write_text("a {}\na red {}\n")
    with pytest.raises(UserError) as caught:
        run("folder", folder, tmp_path / "out", {"prompts": tmp_path / "prompts.txt"})
    assert caught.value.message.count("00.mask.png is 5 x 5 pixels, its reference 12 x 8") == 1


def test_one_bad_file_is_left_out_and_not_the_rows_of_its_subject(tmp_path: Path) -> None:
    folder = sources.photos(tmp_path / "photos", ("dog", "cat"))
    sources.save(folder / "dog/02.png", "lime")
    (folder / "dog/00.png").write_bytes(b"\x89PNG cut")
    (folder / "cat/01.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    sources.save(folder / "cat/00.mask.png", 255, (5, 5), "L")
    (tmp_path / "prompts.txt").write_text("a {}\na red {}\n")
    options = {"prompts": tmp_path / "prompts.txt"}
    with pytest.raises(UserError, match="3 bad rows") as caught:
        run("folder", folder, tmp_path / "out", options)
    for reason in ("00.png is not an image", "01.HEIC is a HEIC photo; `pip install", "00.mask.png is 5 x 5"):
        assert caught.value.message.count(reason) == 1
    found = run("folder", folder, tmp_path / "out", options, skip_bad=True)
    assert found.rows == {"all": 4} and found.dropped == {"bad": 3}
    rows = {row.id: row for row in rows_of(tmp_path / "out")}
    assert [rows[f"dog-00{n}"].references[0].name for n in (0, 1)] == ["01.png", "02.png"]
    assert rows["cat-000"].references[0].name == "00.png" and rows["cat-000"].masks == ()


def test_what_a_manifest_cannot_hold_is_a_bad_row(tmp_path: Path) -> None:
    file = sources.syncd_pairs(tmp_path / "data")
    items = json.loads(file.read_text())
    items[1]["id"] = "\ud800"
    items[2]["category"] = math.inf
    file.write_text(json.dumps(items).replace("Infinity", "1e999"))
    with pytest.raises(UserError) as caught:
        run("syncd-pairs", file, tmp_path / "out", {"images": tmp_path / "data/images"})
    assert "row 2: holds half of a surrogate pair" in caught.value.message
    assert "row 3: holds a number that is not finite" in caught.value.message


def test_names_that_are_not_utf8_are_said_in_one_sentence(tmp_path: Path) -> None:
    folder = sources.photos(tmp_path / "photos", ("dog",))
    other = os.fsencode(folder) + b"/\xb9\xb7"
    os.rename(folder / "dog", os.fsdecode(other))
    sources.photos(folder, ("cat",))
    (tmp_path / "prompts.txt").write_text("a {}\n")
    with pytest.raises(UserError, match="is not UTF-8, which a manifest is; rename the file"):
        run("folder", folder, tmp_path / "out", {"prompts": tmp_path / "prompts.txt"})


def test_a_folder_that_cannot_be_listed_is_said_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may list every folder, so the refusal of the disk is made here."""
    folder = sources.photos(tmp_path / "photos", ("cat", "dog"))
    (tmp_path / "prompts.txt").write_text("a {}\n")
    options = Options(prompts=tmp_path / "prompts.txt")
    listing = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path.name == "dog":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    reason = re.escape(f"cannot read {folder / 'dog'}: Permission denied")
    with pytest.raises(UserError, match=reason):
        convert(LAYOUTS["folder"], folder, tmp_path / "out", options, Choices())
    with pytest.raises(UserError, match=reason):
        check_source(LAYOUTS["folder"], folder, options, MaskChoice.shipped)


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """A list of five rows, three of them bad in ways that only opening shows, or only the list."""
    sources.save(tmp_path / "data/good.png")
    (tmp_path / "data/cut.png").write_bytes((tmp_path / "data/good.png").read_bytes()[:40])
    (tmp_path / "data/drawing.png").write_text("<svg/>")
    names = ["good.png", "cut.png", "missing.png", "drawing.png", "good.png"]
    rows = [{"prompt": f"prompt {number}", "image_paths": [name]} for number, name in enumerate(names)]
    path: Path = sources.write_json(tmp_path / "data/list.json", rows)
    return path


def test_all_bad_rows_are_listed_and_nothing_is_left_behind(tmp_path: Path, spoilt: Path) -> None:
    with pytest.raises(UserError) as caught:
        run("uno", spoilt, tmp_path / "out")
    lines = caught.value.message.splitlines()
    assert lines[0] == f"{spoilt}: 3 bad rows"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["row 2", "row 3", "row 4"]
    assert "SVG" in lines[3] and "does not exist" in lines[2] and "cut.png" in lines[1]
    assert caught.value.hint is not None and "--skip-bad" in caught.value.hint
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def test_bad_rows_are_skipped_and_counted_on_request(tmp_path: Path, spoilt: Path) -> None:
    found = run("uno", spoilt, tmp_path / "out", skip_bad=True)
    assert [row.id for row in rows_of(tmp_path / "out")] == ["row-000001", "row-000005"]
    assert found.dropped == {"bad": 3}
    assert tree(tmp_path / "out/images") == {"good.png"}
    record = json.loads((tmp_path / "out/conversion.json").read_text())
    assert [bad["number"] for bad in record["bad"]] == [2, 3, 4]


def test_a_repeated_id_is_a_bad_row(tmp_path: Path) -> None:
    file = sources.syncd_pairs(tmp_path / "data")
    items = json.loads(file.read_text())
    items[2]["id"] = items[0]["id"]
    file.write_text(json.dumps(items))
    with pytest.raises(UserError, match="row 3: id '3040' was used by row 1 already"):
        run("syncd-pairs", file, tmp_path / "out", {"images": tmp_path / "data/images"})


def test_a_million_bad_rows_do_not_fill_the_screen(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "image_paths": [f"{n}.png"]} for n in range(1000)]
    file = sources.write_json(tmp_path / "list.json", rows)
    with pytest.raises(UserError) as caught:
        run("uno", file, tmp_path / "out")
    lines = caught.value.message.splitlines()
    assert len(lines) == 5 and lines[-1] == "  ... and 997 more like row 3"


def test_no_row_left_is_an_error_that_counts_the_filters(tmp_path: Path) -> None:
    source = sources.uno_1m(tmp_path / "data", [1.0, 2.0, None])
    counted = r"no row is left \(2 score_final < 3.5; 1 no score_final\)\nCheck that SOURCE"
    with pytest.raises(UserError, match=counted):
        run("uno-1m", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_filters_are_counted(tmp_path: Path) -> None:
    source = sources.uno_1m(tmp_path / "data", [4.0, 1.0, 2.0, 9.0])
    found = run("uno-1m", source, tmp_path / "out")
    assert found.dropped == {"score_final < 3.5": 2, "score_final outside 0 to 4": 1}


def test_a_folder_in_use_is_not_touched(
    tmp_path: Path, published: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    source = published["uno"][0]
    (tmp_path / "out").mkdir()
    run("uno", source, tmp_path / "out")  # empty: welcome
    before = tree(tmp_path / "out")
    with pytest.raises(UserError, match="already exists and is not an empty folder"):
        run("uno", source, tmp_path / "out")
    assert tree(tmp_path / "out") == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        run("uno", source, tmp_path / "file")


def test_options_of_other_layouts_are_refused_together(
    tmp_path: Path, published: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    source = published["uno"][0]
    with pytest.raises(
        UserError, match="--min-score, --reference: not an option of the layout uno"
    ) as caught:
        run("uno", source, tmp_path / "out", {"min_score": 3.0, "reference": "all"})
    assert caught.value.hint == "Its own options: --images, --subject."


KILLED = """
import os, signal, sys
from pathlib import Path
from customized_grpo.data import convert
from customized_grpo.data.adapters.base import Options
from customized_grpo.data.adapters.registry import LAYOUTS
convert.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
convert.convert(LAYOUTS["uno"], Path(sys.argv[1]), Path(sys.argv[2]), Options(), convert.Choices())
"""


def test_a_killed_conversion_leaves_no_data_set(
    tmp_path: Path, published: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    command = [sys.executable, "-c", KILLED, str(published["uno"][0]), str(tmp_path / "out")]
    assert subprocess.run(command, timeout=PATIENCE_S).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    (draft,) = tmp_path.glob(".out.*.draft")
    assert tree(draft)  # it was killed in the middle
    run("uno", published["uno"][0], tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 3


def test_a_dry_check_of_a_source_finds_the_same_and_writes_nothing(
    tmp_path: Path, spoilt: Path, published: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    before = tree(tmp_path)
    found = check_source(LAYOUTS["uno"], spoilt, Options(), MaskChoice.shipped)
    assert [problem.split(":")[0] for problem in found.problems] == ["row 2", "row 3", "row 4"]
    for name, (source, options) in published.items():
        dry = check_source(LAYOUTS[name], source, Options(**options), MaskChoice.shipped)
        assert tree(tmp_path) == before
        wet = run(name, source, tmp_path / "out" / name, options)
        assert dry == wet
        before = tree(tmp_path)


def test_nothing_left_is_a_problem_of_a_dry_check(tmp_path: Path) -> None:
    source = sources.uno_1m(tmp_path, [1.0])
    found = check_source(LAYOUTS["uno-1m"], source, Options(), MaskChoice.shipped)
    assert found.problems == ["no row is left (1 score_final < 3.5)"]


PHOTOS = os.environ.get("CGRPO_DREAMBENCH")


@pytest.mark.skipif(PHOTOS is None, reason="CGRPO_DREAMBENCH names no folder of DreamBooth photos")
def test_the_published_dreambench_converts(tmp_path: Path) -> None:
    options = {"reference": "all"}
    found = run("dreambench", Path(str(PHOTOS)), tmp_path / "out", options, held_out=HeldOut.parse("8"))
    assert found.images == 158 and not found.problems
    assert sum(found.rows.values()) == 750 and found.rows["held_out"] == 200
    assert found.references_per_row == {4: 50, 5: 450, 6: 250}
    assert len(rows_of(tmp_path / "out", "held_out.jsonl")) == 200
