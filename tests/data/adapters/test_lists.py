"""Layouts that are lists or labels: the paper's SynCD pairs, SynCD itself, UNO's list and UNO-1M."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sources
from customized_grpo.data.adapters.base import Draft, Dropped
from customized_grpo.errors import UserError

Drafts = Callable[..., list[Draft]]
Reasons = Callable[..., list[str]]
Read = Callable[..., list[Any]]


def edit(file: Path, row: int, **changes: Any) -> Path:
    items = json.loads(file.read_text())
    items[row] = {key: value for key, value in (items[row] | changes).items() if value is not ...}
    file.write_text(json.dumps(items))
    return file


def test_a_pair_of_the_papers_list_becomes_a_row(tmp_path: Path, drafts: Drafts) -> None:
    row = drafts("syncd-pairs", sources.syncd_pairs(tmp_path), images=tmp_path / "images")[1]
    assert (row.number, row.id, row.subject, row.prompt) == (2, "3041", "1", "a post box on highway 1.")
    assert [reference.name for reference in row.references] == ["1/0.png"]
    assert row.references[0].source == tmp_path / "images/1/0.png"
    assert row.target is not None and row.target.name == "1/1.png"
    assert row.meta == {
        "category": "rigid",
        "category_description": "a red rusty post box.",
        "ref_prompt": "a post box on a sidewalk.",
    }
    assert row.masks == ()


def test_a_pair_may_have_several_references_and_masks_beside_them(tmp_path: Path, drafts: Drafts) -> None:
    file = edit(sources.syncd_pairs(tmp_path), 0, ref_img=["0/0.png", "1/0.png"])
    sources.save(tmp_path / "images/0/masks/0.jpg", 255, mode="L")
    assert drafts("syncd-pairs", file, images=tmp_path / "images")[0].masks == ()  # one of two is no help
    sources.save(tmp_path / "images/1/masks/0.jpg", 255, mode="L")
    row = drafts("syncd-pairs", file, images=tmp_path / "images")[0]
    assert [mask.name for mask in row.masks] == ["0/0.png", "1/0.png"] and len(row.references) == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ref_img": ...}, "`ref_img` must be a text"),
        ({"ref_img": []}, "`ref_img` must be a path or a list"),
        ({"ref_img": [3]}, "`ref_img` must be a path or a list"),
        ({"ref_img": "9/0.png"}, "`ref_img`: '9/0.png' does not exist"),
        ({"img": "../list.json"}, "`img`: '../list.json' contains `..`"),
        ({"img": "/etc/passwd"}, "is absolute"),
        ({"text": "  "}, "`text` must be a text that is not empty"),
        ({"id": 3}, "`id` must be a text"),
    ],
)
def test_a_bad_pair_is_named_by_its_row(
    tmp_path: Path, reasons: Reasons, changes: dict[str, Any], reason: str
) -> None:
    file = edit(sources.syncd_pairs(tmp_path), 1, **changes)
    (found,) = reasons("syncd-pairs", file, images=tmp_path / "images")
    assert found.startswith("row 2: ") and reason in found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "holds an object, not a list"),
        (b"[]", "holds no rows\nIs it the complete file"),
        (b"[{]", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b'["\xe9"]', "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_list_is_refused_as_a_whole(
    tmp_path: Path, read: Read, content: bytes, message: str
) -> None:
    (tmp_path / "list.json").write_bytes(content)
    for layout in ("syncd-pairs", "uno"):
        with pytest.raises(UserError, match=message):
            read(layout, tmp_path / "list.json")
    with pytest.raises(UserError, match="cannot read"):
        read("uno", tmp_path / "missing.json")


def test_rows_that_are_no_objects_are_bad_rows(tmp_path: Path, reasons: Reasons) -> None:
    (tmp_path / "list.json").write_text('[1, null, ["a"]]')
    expected = ["row 1: is a number", "row 2: is null", "row 3: is a list"]
    assert [text.partition(",")[0] for text in reasons("uno", tmp_path / "list.json")] == expected


def test_every_view_of_a_syncd_group_is_a_target_with_the_next_as_reference(
    tmp_path: Path, drafts: Drafts
) -> None:
    rows = drafts("syncd", sources.syncd(tmp_path, groups=2))
    pairs = [(row.references[0].name, row.target.name) for row in rows if row.target is not None]
    assert pairs[:3] == [
        ("cat_0_0_0_1.jpg", "cat_0_0_0_0.jpg"),
        ("cat_0_0_0_2.jpg", "cat_0_0_0_1.jpg"),
        ("cat_0_0_0_0.jpg", "cat_0_0_0_2.jpg"),
    ]
    assert [row.prompt for row in rows][:2] == ["cat 0 in scene 0", "cat 0 in scene 1"]
    assert [row.subject for row in rows] == ["metadata_0-000000"] * 3 + ["metadata_0-000001"] * 3
    assert len({row.id for row in rows}) == 6
    mask = rows[0].masks[0]
    assert mask.path == tmp_path / "masks/cat_0_0_0_1.jpg" and mask.nonzero
    assert rows[0].meta == {"category": "deformable"}


def test_a_bad_syncd_group_is_one_bad_row(tmp_path: Path, reasons: Reasons) -> None:
    file = sources.syncd(tmp_path, groups=4) / "metadata_0.json"
    edit(file, 0, prompts=["one"])
    edit(file, 1, filenames=["a.jpg"], prompts=["one"])
    edit(file, 2, filenames="a.jpg")
    found = reasons("syncd", tmp_path)
    assert found == [
        "row 1: metadata_0.json, group 1: has 3 filenames for 1 prompts",
        "row 2: metadata_0.json, group 2: has one view only, so there is no reference for it",
        "row 3: metadata_0.json, group 3: `filenames` must be a list of texts",
    ]


def test_a_syncd_file_that_is_missing_spoils_the_rows_that_need_it(tmp_path: Path, reasons: Reasons) -> None:
    (sources.syncd(tmp_path, groups=1) / "cat_0_0_0_2.jpg").unlink()
    found = reasons("syncd", tmp_path)
    assert [text[:6] for text in found] == ["row 2:", "row 3:"]
    assert all("'/far/away/out/cat_0_0_0_2.jpg' is not in the folder" in text for text in found)


def test_a_folder_without_metadata_points_to_the_other_layout(tmp_path: Path, read: Read) -> None:
    with pytest.raises(UserError, match="syncd-pairs"):
        read("syncd", tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        read("syncd", tmp_path / "missing")


def test_unos_list_keeps_targets_and_several_references(tmp_path: Path, drafts: Drafts) -> None:
    first, second, third = drafts("uno", sources.uno(tmp_path))
    assert first.target is not None and first.target.name == "dog/2.png" and first.id == "row-000001"
    assert [reference.name for reference in second.references] == ["dog/1.png", "cup/1.png"]
    assert second.target is None and third.references[0].name == "cup/1.png"


def test_subjects_of_unos_list_are_their_references_or_their_folders(tmp_path: Path, drafts: Drafts) -> None:
    file = sources.uno(tmp_path)
    subjects = [row.subject for row in drafts("uno", file)]
    assert subjects == ["dog/1.png", "dog/1.png + cup/1.png", "cup/1.png"]
    from customized_grpo.data.adapters.names import SubjectChoice

    by_folder = [row.subject for row in drafts("uno", file, subject=SubjectChoice.folder)]
    assert by_folder == ["dog", "dog", "cup"]


@pytest.mark.parametrize("paths", [..., "dog/1.png", [], [""], [1]])
def test_references_that_are_no_paths_are_bad(tmp_path: Path, reasons: Reasons, paths: Any) -> None:
    file = edit(sources.uno(tmp_path), 1, image_paths=paths)
    assert reasons("uno", file) == ["row 2: `image_paths` must be a list of paths"]


def test_a_link_that_leaves_the_source_is_bad(tmp_path: Path, reasons: Reasons) -> None:
    file = sources.uno(tmp_path / "data")
    (tmp_path / "data/dog/2.png").unlink()
    (tmp_path / "data/dog/2.png").symlink_to(sources.save(tmp_path / "outside.png"))
    assert "is a link that leaves" in reasons("uno", file)[0]


def test_a_pair_of_uno_1m_becomes_a_row(tmp_path: Path, drafts: Drafts) -> None:
    (row,) = drafts("uno-1m", sources.uno_1m(tmp_path, [3.5]))
    assert row.references[0].name == "images/split1/class_Food_0_0_1_12x8.png"
    assert row.target is not None and row.target.name == "images/split1/class_Food_0_0_2_12x8.png"
    assert row.prompt == "a stew on a wooden table"
    assert row.subject == "split1/class_Food_0_0"
    assert row.meta == {"score_final": 3.5, "names": ["stew"], "judgment": "same"}


def test_uno_1m_drops_low_missing_and_absurd_scores(tmp_path: Path, read: Read) -> None:
    folder = sources.uno_1m(tmp_path, [3.4, 3.5, 4.0, 131184.67, -1, None, True])
    items = read("uno-1m", folder)
    assert [item.filter if isinstance(item, Dropped) else item.meta["score_final"] for item in items] == [
        "score_final < 3.5",
        3.5,
        4.0,
        "score_final outside 0 to 4",
        "score_final outside 0 to 4",
        "no score_final",
        "no score_final",
    ]
    kept = [item for item in read("uno-1m", folder, min_score=4.0) if isinstance(item, Draft)]
    assert [row.meta["score_final"] for row in kept] == [4.0]
    for wrong in (-1.0, 5.0, float("nan")):
        with pytest.raises(UserError, match="--min-score"):
            read("uno-1m", folder, min_score=wrong)


def test_uno_1m_reads_every_split_or_the_one_large_file(tmp_path: Path, drafts: Drafts, read: Read) -> None:
    sources.uno_1m(tmp_path, [4.0, 4.0])
    sources.uno_1m(tmp_path, [4.0], split="split2")
    rows = drafts("uno-1m", tmp_path)
    assert [row.number for row in rows] == [1, 2, 3] and len({row.id for row in rows}) == 3
    (tmp_path / "labels/split1.json").rename(tmp_path / "uno_1m_total_labels.json")
    assert len(drafts("uno-1m", tmp_path)) == 1  # labels/ still has split2
    (tmp_path / "labels/split2.json").unlink()
    assert len(drafts("uno-1m", tmp_path)) == 2
    (tmp_path / "uno_1m_total_labels.json").unlink()
    with pytest.raises(UserError, match="has neither labels"):
        read("uno-1m", tmp_path)
