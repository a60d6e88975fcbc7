"""Data sets of the hub through `datasets`: columns, images by content, and what is not read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sources
from customized_grpo.data.adapters import hub
from customized_grpo.data.adapters.base import Bad, Draft, Options
from customized_grpo.data.convert import Choices, convert
from customized_grpo.data.manifest import load_manifest
from customized_grpo.errors import UserError

COLUMNS = "prompt=caption,references=image"


def draft(row: dict[str, Any], columns: str | None = None, folder: Path | None = None) -> Draft | Bad:
    item = hub.attempt(1, lambda: hub._draft(folder, 1, row, hub.read_columns(columns)))
    assert isinstance(item, Draft | Bad)
    return item


def png(colour: str) -> bytes:
    return sources.encoded(Image.new("RGB", (12, 8), colour))


def test_a_column_is_what_it_is_said_to_be_or_what_its_name_says() -> None:
    assert hub.read_columns(None) == {key: key for key in hub.KEYS}
    assert hub.read_columns("prompt=caption, references=image")["references"] == "image"
    for wrong in ("caption", "prompt=", "promt=caption", "masks=mask"):
        with pytest.raises(UserError, match="not KEY=COLUMN"):
            hub.read_columns(wrong)
    with pytest.raises(UserError) as error:
        hub.read_columns("promt=caption")
    assert error.value.hint is not None and "did you mean prompt=...?" in error.value.hint


def test_images_are_named_by_their_content_and_tell_subjects_apart() -> None:
    row = {"prompt": " a dog ", "references": [{"bytes": png("red"), "path": "/x/y.jpg"}], "target": None}
    one = draft(row)
    again = draft({**row, "id": 7, "target": {"bytes": png("blue"), "path": None}})
    assert isinstance(one, Draft) and isinstance(again, Draft)
    assert (one.id, one.prompt, one.target) == ("row-000001", "a dog", None)
    assert one.references == again.references and one.references[0].name.endswith(".png")
    assert one.subject == again.subject == f"image-{Path(one.references[0].name).stem}"
    assert again.id == "7" and again.target is not None and again.target.name != one.references[0].name
    named = draft({**row, "subject": "rex"})
    assert isinstance(named, Draft) and named.subject == "rex"


def test_a_data_set_cannot_name_files_of_this_machine(tmp_path: Path) -> None:
    inside = sources.save(tmp_path / "set/a.png")
    secret = sources.save(tmp_path / "secret.png")
    (tmp_path / "set/link.png").symlink_to(secret)
    folder = (tmp_path / "set").resolve()

    def of_path(path: Path, folder: Path | None = folder) -> Draft | Bad:
        return draft({"prompt": "p", "references": {"bytes": None, "path": str(path)}}, folder=folder)

    found = of_path(inside)
    assert isinstance(found, Draft) and found.references[0].source == inside
    for path in (secret, folder / "../secret.png", folder / "link.png"):
        assert isinstance(of_path(path), Bad), path
    assert "hf download" in of_path(inside, None).reason  # type: ignore[union-attr]


def test_cells_that_are_no_images_are_bad_rows() -> None:
    for cell in (None, "a.png", 3, {"bytes": b"", "path": None}, {"bytes": "text"}, []):
        found = draft({"prompt": "p", "references": cell})
        assert isinstance(found, Bad) and "references" in found.reason
    assert isinstance(draft({"prompt": " ", "references": {"bytes": png("red")}}), Bad)


def test_without_the_library_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="needs the library datasets") as error:
        list(hub.read(tmp_path, Options()))
    assert error.value.hint == "Install it with: pip install 'customized-grpo[datasets]'."


# With the library itself, where it is installed


def test_parquet_files_and_folders_of_images_are_read(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    source = sources.hub(tmp_path / "set")
    drafts = list(hub.read(source, Options(columns=COLUMNS)))
    assert [draft.prompt for draft in drafts if isinstance(draft, Draft)] == [
        f"a dog in scene {number}" for number in range(3)
    ]
    convert(hub.LAYOUT, source, tmp_path / "out", Options(columns=COLUMNS), Choices())
    rows = load_manifest(tmp_path / "out/manifest.jsonl", require_masks=False)
    first = drafts[0]
    assert isinstance(first, Draft) and rows[0].references[0].read_bytes() == first.references[0].source
    folder = tmp_path / "photos/train"
    lines = []
    for number in range(2):
        sources.save(folder / f"{number}.png", (90 * number, 0, 0))
        lines.append(json.dumps({"file_name": f"{number}.png", "prompt": f"p {number}"}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    drafts = list(hub.read(tmp_path / "photos", Options(columns="references=image")))
    assert [draft.references[0].source for draft in drafts if isinstance(draft, Draft)] == [
        (folder / f"{number}.png").resolve() for number in range(2)
    ]


def test_a_split_or_column_that_is_not_there_is_said(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    source = sources.hub(tmp_path / "set")
    with pytest.raises(
        UserError, match="lacks the columns prompt=prompt, references=references; it has caption"
    ):
        list(hub.read(source, Options()))
    with pytest.raises(UserError, match="split 'test' cannot be read"):
        list(hub.read(source, Options(columns=COLUMNS, split="test")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        list(hub.read(tmp_path / "empty", Options(columns=COLUMNS)))
