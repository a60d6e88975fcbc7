"""Layouts that are folders of photos: your own, and DreamBench."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sources
from customized_grpo.data.adapters.base import Draft, Ignored
from customized_grpo.data.dreambench import read_dreambench
from customized_grpo.errors import UserError

Drafts = Callable[..., list[Draft]]
Reasons = Callable[..., list[str]]
Read = Callable[..., list[Any]]

PHOTOS = os.environ.get("CGRPO_DREAMBENCH")
needs_photos = pytest.mark.skipif(
    PHOTOS is None, reason="CGRPO_DREAMBENCH names no folder of DreamBooth photos"
)


def prompts(folder: Path, text: str = "a {} on the beach\n\n  a red {} \n") -> Path:
    file = folder / "prompts.txt"
    file.write_text(text)
    return file


def test_every_subject_of_a_folder_meets_every_prompt(tmp_path: Path, drafts: Drafts) -> None:
    folder = sources.photos(tmp_path / "photos")
    (folder / "dog" / "class.txt").write_text("corgi dog\n")
    rows = drafts("folder", folder, prompts=prompts(tmp_path))
    assert [(row.id, row.prompt) for row in rows] == [
        ("dog-000", "a corgi dog on the beach"),
        ("dog-001", "a red corgi dog"),
        ("red_backpack2-000", "a red backpack on the beach"),
        ("red_backpack2-001", "a red red backpack"),
    ]
    assert [row.subject for row in rows] == ["dog", "dog", "red_backpack2", "red_backpack2"]
    assert [reference.name for reference in rows[0].references] == ["dog/00.png"]
    assert [mask.name for mask in rows[0].masks] == ["dog/00.mask.png"] and not rows[0].masks[0].nonzero
    assert rows[0].target is not None and rows[0].target.name == "dog/01.png"
    assert [row.number for row in rows] == [1, 2, 3, 4]


def test_the_reference_of_a_folder_is_chosen(tmp_path: Path, drafts: Drafts, reasons: Reasons) -> None:
    folder = sources.photos(tmp_path / "photos", ("dog",))
    both = drafts("folder", folder, prompts=prompts(tmp_path), reference="all")[0]
    assert [reference.name for reference in both.references] == ["dog/00.png", "dog/01.png"]
    assert both.masks == ()  # the second has none
    second = drafts("folder", folder, prompts=prompts(tmp_path), reference="01")[0]
    assert [reference.name for reference in second.references] == ["dog/01.png"]
    assert reasons("folder", folder, prompts=prompts(tmp_path), reference="7") == [
        "row 1: subject 'dog' has no photo '7'"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty\nWrite one entry in each line"),
        ("\n \n", "is empty"),
        ("a {0} here\nfine {}", "1 of the prompts .*a .0. here"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused(tmp_path: Path, read: Read, text: str, message: str) -> None:
    folder = sources.photos(tmp_path / "photos")
    with pytest.raises(UserError, match=message):
        read("folder", folder, prompts=prompts(tmp_path, text))


def test_every_photo_of_a_folder_takes_its_turn(tmp_path: Path, drafts: Drafts) -> None:
    folder = tmp_path / "photos"
    for name in ("a.jfif", "b.JPG", "c.avif", "d.webp"):
        sources.save(folder / "dog" / name)
    sources.save(folder / "lone" / "a.png")
    rows = drafts("folder", folder, prompts=prompts(tmp_path, "\n".join("abcde")))
    found = [(row.references[0].name, row.target.name if row.target else None) for row in rows]
    assert found[:5] == [
        ("dog/a.jfif", "dog/b.JPG"),
        ("dog/b.JPG", "dog/c.avif"),
        ("dog/c.avif", "dog/d.webp"),
        ("dog/d.webp", "dog/a.jfif"),
        ("dog/a.jfif", "dog/b.JPG"),
    ]
    assert found[5:] == [("lone/a.png", None)] * 5


def test_only_photos_with_masks_take_turns_if_there_are_some(tmp_path: Path, drafts: Drafts) -> None:
    folder = sources.photos(tmp_path / "photos", ("dog",))
    rows = drafts("folder", folder, prompts=prompts(tmp_path))
    assert [row.references[0].name for row in rows] == ["dog/00.png"] * 2 and all(row.masks for row in rows)


def test_clutter_is_ignored_and_counted(tmp_path: Path, read: Read) -> None:
    folder = sources.photos(tmp_path / "photos", ("dog", "cat"))
    clean = read("folder", folder, prompts=prompts(tmp_path))
    for name in (".ipynb_checkpoints/01.png", "__MACOSX/dog/._00.png", "@eaDir/x.jpg", "dog/.hidden/a.png"):
        sources.save(folder / name)
    for name in ("dog/._00.png", "dog/Thumbs.db", "cat/desktop.ini", ".DS_Store", "cat/notes.txt"):
        (folder / name).write_bytes(b"\0\5\26\7")
    sources.save(folder / "loose.png")
    (folder / "empty").mkdir()
    sources.save(folder / "dog/more/1.png")
    sources.save(folder / "cat/9.mask.png", 255, mode="L")
    items = read("folder", folder, prompts=prompts(tmp_path))
    assert [item for item in items if isinstance(item, Draft)] == clean
    assert Counter(item.kind for item in items if isinstance(item, Ignored)) == {
        "files of systems and tools (hidden, Thumbs.db, ...)": 8,
        "files that are no images (.txt)": 1,
        "images outside of a subject's folder": 1,
        "folders without an image": 1,
        "folders inside a subject's folder": 1,
        "masks without a photo": 1,
    }


def test_what_was_meant_as_a_photo_or_mask_is_named(tmp_path: Path, reasons: Reasons) -> None:
    folder = tmp_path / "photos"
    for name in ("a.png", "a_mask.png", "b.png", "b.mask.jpg", "halloween_mask.png"):
        sources.save(folder / "dog" / name)
    (folder / "cat").mkdir()
    (folder / "cat/IMG_1.CR2").write_bytes(b"II*\0")
    found = reasons("folder", folder, prompts=prompts(tmp_path))
    for reason in (
        "cat/IMG_1.CR2 cannot be read; export it as JPEG or PNG",
        "subject 'cat' has no photo",
        "dog/b.mask.jpg is named like a mask; masks are called NAME.mask.png",
        "dog/a_mask.png is named like a mask; masks are called a.mask.png",
    ):
        assert sum(text.endswith(reason) for text in found) == 1
    assert len(found) == 4


def test_a_folder_needs_prompts_and_subjects(tmp_path: Path, read: Read) -> None:
    with pytest.raises(UserError, match="--prompts is missing"):
        read("folder", sources.photos(tmp_path / "photos"))
    (tmp_path / "empty" / "dog").mkdir(parents=True)
    with pytest.raises(UserError, match="no folder with images"):
        read("folder", tmp_path / "empty", prompts=prompts(tmp_path))


def test_a_class_file_of_two_lines_is_a_bad_row(tmp_path: Path, reasons: Reasons) -> None:
    folder = sources.photos(tmp_path / "photos", ("dog",))
    (folder / "dog" / "class.txt").write_text("dog\ncorgi\n")
    assert "must hold one line, not 2" in reasons("folder", folder, prompts=prompts(tmp_path))[0]
    (folder / "dog" / "class.txt").write_bytes("Hündin".encode("latin-1"))
    assert "is not UTF-8" in reasons("folder", folder, prompts=prompts(tmp_path))[0]


def test_dreambench_meets_objects_and_live_subjects_with_their_own_prompts(
    tmp_path: Path, drafts: Drafts
) -> None:
    folder = sources.dreambench(tmp_path, {"can": "can", "cat2": "cat", "bear": "stuffed animal"})
    rows = drafts("dreambench", folder)
    assert len(rows) == 75 and [row.number for row in rows] == list(range(1, 76))
    assert rows[0].prompt == "a can in object scene 0"
    assert rows[25].prompt == "a cat in live scene 0"
    assert rows[74].prompt == "a shade4 stuffed animal" and rows[74].id == "bear-24"
    types = {
        subject: Counter(r.meta["prompt_type"] for r in rows if r.subject == subject)
        for subject in ("can", "cat2")
    }
    assert types["can"] == {"recontext": 20, "property": 5}
    assert types["cat2"] == {"recontext": 10, "accessory": 10, "property": 5}
    assert rows[25].meta == {
        "class": "cat",
        "category": "live",
        "prompt_type": "recontext",
        "prompt_index": 0,
    }
    assert rows[45].meta["prompt_type"] == "property" and rows[44].meta["prompt_type"] == "accessory"
    assert rows[0].references[0].name == "can/00.jpg"
    assert rows[0].target is not None and rows[0].target.name == "can/01.jpg"


def test_the_references_of_dreambench_are_first_given_all_or_from_a_list(
    tmp_path: Path, drafts: Drafts, reasons: Reasons, read: Read
) -> None:
    folder = sources.dreambench(tmp_path / "dataset", {"can": "can", "cat2": "cat"})
    assert drafts("dreambench", folder, reference="02")[0].references[0].name == "can/02.jpg"
    assert len(drafts("dreambench", folder, reference="all")[0].references) == 3
    rows = [
        {"prompt": "x", "image_paths": ["dreambooth/dataset/can/01.jpg"]},
        {"prompt": "y", "image_paths": ["dreambooth/dataset/can/01.jpg"]},
        {"prompt": "z", "image_paths": ["dreambooth/dataset/cat2/02.jpg"]},
    ]
    file = sources.write_json(tmp_path / "single.json", rows)
    given = drafts("dreambench", folder, reference=str(file))
    assert {row.references[0].name for row in given} == {"can/01.jpg", "cat2/02.jpg"}
    sources.write_json(file, rows[:2])
    assert reasons("dreambench", folder, reference=str(file)) == [
        f"row 26: {file} names no photo of subject 'cat2'"
    ]
    sources.write_json(file, [*rows, rows[0] | {"image_paths": ["can/02.jpg"]}])
    with pytest.raises(UserError, match="row 4: another reference of 'can'"):
        read("dreambench", folder, reference=str(file))


def test_a_subject_of_dreambench_without_folder_is_one_bad_row(tmp_path: Path, reasons: Reasons) -> None:
    folder = sources.dreambench(tmp_path, {"can": "can", "cup": "cup"})
    for photo in (folder / "can").iterdir():
        photo.unlink()
    (folder / "can").rmdir()
    assert reasons("dreambench", folder) == ["row 1: subject 'can' has no folder"]


@pytest.mark.parametrize("change", ["crlf", "bom", "comments", "double quotes"])
def test_a_prompts_file_that_an_editor_or_git_changed_reads_the_same(
    tmp_path: Path, drafts: Drafts, change: str
) -> None:
    folder = sources.dreambench(tmp_path, {"can": "can", "cat2": "cat"})
    plain = drafts("dreambench", folder)
    file = folder / "prompts_and_classes.txt"
    text = file.read_text()
    if change == "crlf":
        text = text.replace("\n", "\r\n")
    elif change == "bom":
        text = "\ufeff" + text.removeprefix("Classes\n\n")
    elif change == "comments":
        text = text.replace("can,can", "# objects\ncan,can # a tin\n# pets").replace(
            "prompt_list = [", "# x\n["
        )
    else:
        text = text.replace("'", '"')
    file.write_bytes(text.encode())
    assert drafts("dreambench", folder) == plain and len(plain) == 50


def test_clutter_beside_the_photos_of_dreambench_is_no_reference(tmp_path: Path, read: Read) -> None:
    folder = sources.dreambench(tmp_path, {"can": "can"})
    plain = read("dreambench", folder)
    (folder / "can/._00.jpg").write_bytes(b"\0\5\26\7")
    (folder / "can/.ipynb_checkpoints").mkdir()
    items = read("dreambench", folder)
    assert [item for item in items if isinstance(item, Draft)] == plain
    assert [type(item) for item in items[:2]] == [Ignored] * 2
    assert [photo.name for photo in read_dreambench(folder).subjects[0].photos] == [
        "00.jpg",
        "01.jpg",
        "02.jpg",
    ]


def test_a_source_behind_a_link_is_read_like_any_other(tmp_path: Path, drafts: Drafts) -> None:
    sources.dreambench(tmp_path / "real", {"can": "can"})
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(drafts("dreambench", tmp_path / "link")) == 25


def test_a_prompts_file_that_was_changed_is_refused(tmp_path: Path, read: Read) -> None:
    folder = sources.dreambench(tmp_path, {"can": "can"})
    file = folder / "prompts_and_classes.txt"
    file.write_text(file.read_text().replace("'a {0} {1} in live scene 3'", "'no class'"))
    with pytest.raises(UserError, match="'no class'.*under Live Subject Prompts, is no prompt"):
        read("dreambench", folder)
    file.unlink()
    with pytest.raises(UserError, match=r"prompts_and_classes.txt: cannot be read"):
        read("dreambench", folder)


@needs_photos
def test_the_published_dreambench_parses_exactly(drafts: Drafts) -> None:
    folder = Path(str(PHOTOS))
    began = time.perf_counter()
    rows = drafts("dreambench", folder)
    print(f"750 rows of DreamBench parsed in {time.perf_counter() - began:.3f} s")
    assert len(rows) == 750 and len({row.id for row in rows}) == 750
    subjects = {row.subject: row.meta["category"] for row in rows}
    assert Counter(subjects.values()) == {"object": 21, "live": 9}
    assert Counter(row.meta["prompt_type"] for row in rows) == {
        "recontext": 21 * 20 + 9 * 10,
        "accessory": 9 * 10,
        "property": 30 * 5,
    }
    types = {row.prompt: row.meta["prompt_type"] for row in rows}
    assert types["a dog wearing a red hat"] == "accessory" and types["a cube shaped dog"] == "property"
    assert types["a dog on top of a purple rug in a forest"] == "recontext"
    assert types["a backpack on top of a white rug"] == "recontext"
    assert "a dog on top of a white rug" not in types and "a red stuffed animal" in types
    assert not any("{" in row.prompt or "  " in row.prompt for row in rows)
    images = {ref.name for row in drafts("dreambench", folder, reference="all") for ref in row.references}
    assert len(images) == 158


@needs_photos
def test_the_published_classes_are_the_folders() -> None:
    benchmark = read_dreambench(Path(str(PHOTOS)))
    folders = {path.name for path in Path(str(PHOTOS)).iterdir() if path.is_dir()}
    assert {subject.name for subject in benchmark.subjects} == folders
    assert len(benchmark.object_prompts) == len(benchmark.live_prompts) == 25
