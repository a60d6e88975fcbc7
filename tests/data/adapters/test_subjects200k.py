"""Subjects200K: parquet files and folder exports of two images in one."""

from __future__ import annotations

import sys
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

POOR = {"compositeStructure": 5, "objectConsistency": 4, "imageQuality": 5}


def test_the_left_half_is_the_reference_of_the_right_half(tmp_path: Path, drafts: Drafts) -> None:
    (row,) = drafts("subjects200k", sources.subjects200k_folder(tmp_path, [sources.subjects200k_row(7)]))
    assert row.references[0].cut is not None and row.references[0].cut.box == (8, 8, 520, 520)
    assert row.target is not None and row.target.cut is not None
    assert row.target.cut.box == (528, 8, 1040, 520)
    assert row.references[0].source is row.target.source or row.references[0].source == row.target.source
    assert (row.subject, row.prompt) == ("chair 7", "chair 7 on a beach")
    assert row.meta == {
        "category": "furniture",
        "collection": "collection_2",
        "reference_prompt": "a chair in a studio",
    }


def test_poor_and_unrated_pairs_are_dropped(tmp_path: Path, read: Read) -> None:
    invalid = sources.subjects200k_row(4)["description"] | {"description_valid": False}
    rows = [
        sources.subjects200k_row(0),
        sources.subjects200k_row(1, quality_assessment=POOR),
        sources.subjects200k_row(2, quality_assessment=None),
        sources.subjects200k_row(3, quality_assessment=POOR | {"objectConsistency": None}),
        sources.subjects200k_row(4, description=invalid),
        sources.subjects200k_row(5, description=None),
    ]
    folder = sources.subjects200k_folder(tmp_path, rows)
    items = read("subjects200k", folder)
    assert [item.filter if isinstance(item, Dropped) else "kept" for item in items] == [
        "kept",
        "quality_assessment < 5",
        "no quality_assessment",
        "quality_assessment < 5",
        "no valid description",
        "no valid description",
    ]
    assert isinstance(read("subjects200k", folder, min_quality=4)[1], Draft)


def test_bad_rows_of_a_folder_export_are_named(tmp_path: Path, reasons: Reasons) -> None:
    rows = [sources.subjects200k_row(number) for number in range(3)]
    folder = sources.subjects200k_folder(tmp_path, rows)
    (folder / "1.png").unlink()
    with (folder / "metadata.jsonl").open("a") as file:
        file.write("{broken\n" + "[" * 100_000 + "\n")
    found = reasons("subjects200k", folder)
    assert found[0] == "row 2: `file_name`: '1.png' does not exist"
    assert found[1].startswith("row 4: is not JSON: ") and found[2].startswith("row 5: is not JSON: ")


def test_parquet_files_are_read_like_the_folder(tmp_path: Path, drafts: Drafts) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    content = sources.encoded(sources.composite())
    rows = [
        sources.subjects200k_row(number, image={"bytes": content, "path": f"{number}.png"})
        for number in range(3)
    ]
    (tmp_path / "data").mkdir()
    for shard, part in enumerate((rows[:2], rows[2:])):
        table = pyarrow.Table.from_pylist(part)
        parquet.write_table(table, tmp_path / "data" / f"train-0000{shard}-of-00002.parquet")
    found = drafts("subjects200k", tmp_path)
    assert [row.subject for row in found] == ["chair 0", "chair 1", "chair 2"]
    assert found[2].references[0].source == content
    assert found[1].meta["category"] == "furniture" and found[1].number == 2


def test_a_damaged_parquet_file_is_a_user_error(tmp_path: Path, read: Read) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as Subjects200K"):
        read("subjects200k", tmp_path)


def test_without_pyarrow_the_message_says_how_to_get_it(
    tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="needs pyarrow") as caught:
        read("subjects200k", tmp_path)
    assert caught.value.hint is not None and "customized-grpo[parquet]" in caught.value.hint


def test_a_folder_of_neither_kind_is_refused(tmp_path: Path, read: Read) -> None:
    with pytest.raises(UserError, match="neither metadata.jsonl nor"):
        read("subjects200k", tmp_path)
