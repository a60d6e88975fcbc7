"""The promises of the manifest."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from customized_grpo.data.listing import LONGEST, a_few
from customized_grpo.data.manifest import Row, load_manifest, write_manifest
from customized_grpo.data.row_checks import MAX_LINE_BYTES
from customized_grpo.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "data"
    (home / "dog").mkdir(parents=True)
    for name in ("1.png", "2.png", "target.png"):
        Image.new("RGB", (8, 6), "red").save(home / "dog" / name)
    for name in ("1.mask.png", "2.mask.png"):
        Image.new("L", (8, 6), 255).save(home / "dog" / name)
    Image.new("RGB", (8, 6)).save(tmp_path / "outside.png")
    return home


def row(**changes: Any) -> dict[str, Any]:
    item = {"id": "a", "prompt": "a dog on a beach", "references": ["dog/1.png"]} | changes
    return {key: value for key, value in item.items() if value is not ...}


def write(folder: Path, *rows: dict[str, Any] | bytes) -> Path:
    lines = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in rows]
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder / "rows.jsonl"


def problems(path: Path, *, require_masks: bool = False, check_images: bool = True) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_manifest(path, require_masks=require_masks, check_images=check_images)
    first, *lines = caught.value.message.splitlines()
    assert first.startswith(str(path))
    return [line.strip() for line in lines]


def test_a_full_row_is_read_with_absolute_paths(folder: Path) -> None:
    item = row(
        references=["dog/1.png", "dog/2.png"],
        masks=["dog/1.mask.png", "dog/2.mask.png"],
        target="dog/target.png",
        subject="dog",
        meta={"k": [1, None]},
    )
    assert load_manifest(write(folder, item), require_masks=True) == [
        Row(
            id="a",
            prompt="a dog on a beach",
            references=(folder / "dog/1.png", folder / "dog/2.png"),
            masks=(folder / "dog/1.mask.png", folder / "dog/2.mask.png"),
            target=folder / "dog/target.png",
            subject="dog",
            meta={"k": [1, None]},
        )
    ]


def test_optional_keys_may_be_absent_or_null(folder: Path) -> None:
    path = write(folder, row(), row(id="b", masks=None, target=None, subject=None, meta=None))
    first, second = load_manifest(path, require_masks=False)
    assert first == Row("a", "a dog on a beach", (folder / "dog/1.png",))
    assert second == Row("b", "a dog on a beach", (folder / "dog/1.png",))


def test_bom_crlf_and_blank_lines_are_welcome(folder: Path) -> None:
    lines = [json.dumps(row(id=name)) for name in "ab"]
    (folder / "rows.jsonl").write_bytes(("\ufeff" + "\r\n\r\n".join(lines)).encode())
    rows = load_manifest(folder / "rows.jsonl", require_masks=False)
    assert [item.id for item in rows] == ["a", "b"]


def loop(folder: Path) -> None:
    (folder / "loop.png").symlink_to(folder / "loop.png")


BAD_ROWS: list[tuple[str, dict[str, Any] | bytes, str]] = [
    ("missing file", row(references=["dog/9.png"]), "`references`: 'dog/9.png' does not exist"),
    ("absolute path", row(target="/etc/passwd"), "`target`: '/etc/passwd' is absolute"),
    ("windows path", row(references=["C:\\a.png"]), "is absolute"),
    ("parent", row(references=["../outside.png"]), "'../outside.png' contains `..`"),
    ("inner parent", row(references=["dog/../dog/1.png"]), "contains `..`"),
    ("windows parent", row(references=["dog\\..\\1.png"]), "contains `..`"),
    ("link out", row(references=["link.png"]), "'link.png' is a link that leaves"),
    ("not UTF-8", row(references=["\udcb9\udcb7/1.png"]), "half of a surrogate pair"),
    ("backslashes", row(references=["dog\\1.png"]), "does not exist; with `/` in place of each backslash"),
    ("accents", row(references=[unicodedata.normalize("NFD", "caf\u00e9.png")]), "stored as Unicode NFC"),
    ("linked folder out", row(references=["linked/outside.png"]), "is a link that leaves"),
    ("folder", row(references=["dog"]), "'dog' is not a regular file"),
    ("nul byte", row(references=["a\0b"]), "is no usable path"),
    ("long name", row(references=["x" * 5000]), "is no usable path"),
    ("not utf-8", json.dumps(row()).encode().replace(b"beach", b"b\xe9ach"), "is not UTF-8 (byte"),
    ("utf-16", json.dumps(row()).encode("utf-16"), "is not UTF-8"),
    ("not json", b"{'id': 1}", "is not JSON: "),
    ("two values", b"{} {}", "is not JSON: Extra data at column 4"),
    ("list", b"[1]", "is a list, not an object"),
    ("nan", b'{"id": NaN}', "NaN is no number"),
    ("infinite number", b'{"id": "a", "meta": {"score": 1e999}}', "a number that is not finite"),
    ("huge integer", b'{"id": ' + b"9" * 5000 + b"}", "is not JSON: Exceeds the limit"),
    ("deep", b'{"meta": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    ("duplicate key", b'{"id": "a", "id": "b"}', "has the key 'id' twice"),
    ("surrogate", b'{"id": "\\ud800"}', "half of a surrogate pair"),
    ("10 MB line", json.dumps(row(meta={"x": "y" * 10_000_000})).encode(), "is longer than 1,048,576 bytes"),
    ("no id", row(id=...), "lacks `id`"),
    ("null id", row(id=None), "`id` must be a string, not null"),
    ("number id", row(id=3), "`id` must be a string, not a number"),
    ("blank prompt", row(prompt="  "), "`prompt` is empty"),
    ("prompt list", row(prompt=["x"]), "`prompt` must be a string, not a list"),
    ("references string", row(references="dog/1.png"), "`references` must be a list of paths"),
    ("references numbers", row(references=[1]), "`references` must be a list of paths"),
    ("null references", row(references=None), "`references` must be a list of paths"),
    ("no masks", row(masks=[]), "`masks` is an empty list"),
    ("masks alone", row(references=[], masks=["dog/1.mask.png"]), "has 1 masks for 0 references"),
    ("meta list", row(meta=[1]), "`meta` must be an object, not a list"),
    ("unknown key", row(refrences=["x"]), "unknown key 'refrences'; did you mean `references`?"),
    ("far key", row(zzzzzz=1), "unknown key 'zzzzzz'; put it into `meta`"),
    ("mask count", row(masks=["dog/1.mask.png"] * 2), "has 2 masks for 1 references"),
    ("bad image", row(references=["bad.png"]), "bad.png is not an image"),
    ("truncated image", row(references=["cut.png"]), "cut.png cannot be decoded"),
    ("svg", row(target="svg.png"), "svg.png is an SVG drawing"),
    ("black mask", row(masks=["black.png"]), "black.png: the mask marks no pixel"),
    ("mask size", row(masks=["small.png"]), "is 4 x 3 pixels, its reference 8 x 6"),
]


def spoil(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    Image.new("RGB", (8, 6)).save(folder / "caf\u00e9.png")
    (folder / "linked").symlink_to(folder.parent, target_is_directory=True)
    (folder / "bad.png").write_bytes(b"not an image")
    (folder / "svg.png").write_bytes(b"<svg/>")
    Image.effect_noise((64, 64), 90).save(folder / "cut.png")
    os.truncate(folder / "cut.png", (folder / "cut.png").stat().st_size // 2)
    Image.new("L", (8, 6), 1).save(folder / "black.png")
    Image.new("L", (4, 3), 255).save(folder / "small.png")


@pytest.mark.parametrize(
    ("line", "message"), [case[1:] for case in BAD_ROWS], ids=[case[0] for case in BAD_ROWS]
)
def test_each_bad_row_is_named_with_its_line(
    folder: Path, line: dict[str, Any] | bytes, message: str
) -> None:
    spoil(folder)
    found = problems(write(folder, row(id="good"), line, row(id="fine")))
    assert any(message in text for text in found), found
    assert all(text.startswith("line 2: ") for text in found), found


def test_all_bad_rows_are_reported_at_once(folder: Path) -> None:
    spoil(folder)
    lines = [
        item | {"id": f"row {n}"} if isinstance(item, dict) and item.get("id") == "a" else item
        for n, (_, item, _) in enumerate(BAD_ROWS)
    ]
    found = problems(write(folder, row(id="good"), *lines))
    assert {int(text.split()[1].rstrip(":")) for text in found} == set(range(2, 2 + len(lines)))


def test_a_mistake_of_every_row_is_listed_a_few_times_and_counted(folder: Path) -> None:
    spoil(folder)
    lines = [row(id=str(n), references=[f"imgs/{n}.png"]) for n in range(1000)]
    found = problems(write(folder, *lines[:900], row(id="x", prompt=""), *lines[900:]))
    assert found == [
        "line 1: `references`: 'imgs/0.png' does not exist",
        "line 2: `references`: 'imgs/1.png' does not exist",
        "line 3: `references`: 'imgs/2.png' does not exist",
        "line 901: `prompt` is empty",
        "... and 997 more like line 3",
    ]


def test_many_kinds_of_mistakes_fit_a_screen() -> None:
    kinds = [(f"line {n}", "x" * n) for n in range(250)]
    lines = a_few(kinds)
    assert len(lines) == LONGEST + 1 and lines[-1] == "... and 150 more"


def test_a_json_list_is_named_once(folder: Path) -> None:
    (folder / "rows.jsonl").write_text(json.dumps([row(), row(id="b")], indent=2))
    (found,) = problems(folder / "rows.jsonl")
    assert found.startswith("line 1: starts a JSON list; a manifest has one object a line")


def test_a_snapshot_of_the_hubs_cache_is_read_through_its_links(tmp_path: Path) -> None:
    repo = tmp_path / "hub/datasets--me--toys"
    snapshot = repo / "snapshots/abc"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    Image.new("RGB", (8, 6)).save(repo / "blobs/1", format="PNG")
    (snapshot / "1.png").symlink_to("../../blobs/1")
    (snapshot / "secret.png").symlink_to("../../../../secret")
    (tmp_path / "secret").write_bytes((repo / "blobs/1").read_bytes())
    path = write(snapshot, row(references=["1.png"]), row(id="b", references=["secret.png"]))
    (found,) = problems(path)
    assert found.startswith("line 2: ") and "is a link that leaves" in found and "cp -rL" in found
    with_links = load_manifest(write(snapshot, row(references=["1.png"])), require_masks=False)
    write_manifest(snapshot / "again.jsonl", with_links)
    assert load_manifest(snapshot / "again.jsonl", require_masks=False) == with_links


def test_all_mistakes_of_one_row_are_reported(folder: Path) -> None:
    spoil(folder)
    item = row(id=1, prompt="", references=["gone.png", "bad.png"], target="/x", subjct="dog")
    assert len(problems(write(folder, item))) == 6


def test_duplicate_ids_name_the_first_line(folder: Path) -> None:
    found = problems(write(folder, row(), row(id="b"), row()))
    assert found == ["line 3: id 'a' was used on line 1 already"]


def test_missing_masks_are_an_error_only_when_required(folder: Path) -> None:
    path = write(folder, row(), row(id="b", masks=["dog/1.mask.png"]))
    assert problems(path, require_masks=True) == ["line 1: has no `masks`, which the reward needs"]
    assert len(load_manifest(path, require_masks=False)) == 2


def test_a_file_without_rows_is_an_error(folder: Path) -> None:
    for content in (b"", b"\n\r\n", b"\xef\xbb\xbf"):
        (folder / "rows.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=r"holds no rows\nWrite one JSON object in each line"):
            load_manifest(folder / "rows.jsonl", require_masks=False)


@pytest.mark.parametrize("name", ["missing.jsonl", "dog"])
def test_a_manifest_that_cannot_be_read_is_a_user_error(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot read manifest"):
        load_manifest(folder / name, require_masks=False)


def test_a_line_just_under_the_limit_is_read(folder: Path) -> None:
    line = json.dumps(row(meta={"x": ""})).encode()
    line = line.replace(b'"x": ""', b'"x": "' + b"y" * (MAX_LINE_BYTES - len(line) - 1) + b'"')
    assert len(line) + 1 == MAX_LINE_BYTES
    assert len(load_manifest(write(folder, line), require_masks=False)) == 1
    assert "is longer than" in problems(write(folder, line + b" "))[0]


def test_links_inside_the_folder_are_welcome(folder: Path) -> None:
    (folder / "alias.png").symlink_to("dog/1.png")
    assert load_manifest(write(folder, row(references=["alias.png"])), require_masks=False)


def test_without_image_checks_no_image_is_opened(folder: Path) -> None:
    spoil(folder)
    path = write(folder, row(references=["bad.png"], masks=["small.png"]))
    assert len(load_manifest(path, require_masks=True, check_images=False)) == 1


def test_each_file_is_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["customized_grpo.data.image_info"]
    opened: list[Path] = []
    real: Callable[[Path], Image.Image] = module.open_image
    monkeypatch.setattr(module, "open_image", lambda path: opened.append(path) or real(path))
    load_manifest(write(folder, *(row(id=str(n)) for n in range(5))), require_masks=False)
    assert opened == [folder / "dog/1.png"]


text = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompts=st.lists(text, min_size=1, max_size=4),
    subject=st.none() | text,
    meta=st.dictionaries(
        st.text(st.characters(codec="utf-8")), st.integers() | st.text("äé\r\n\u2028"), max_size=2
    ),
    with_masks=st.booleans(),
)
def test_written_manifests_read_back_equal(
    folder: Path, prompts: list[str], subject: str | None, meta: dict[str, Any], with_masks: bool
) -> None:
    rows = [
        Row(
            id=f"{n} {prompt}",
            prompt=prompt,
            references=(folder / "dog/1.png",),
            masks=(folder / "dog/1.mask.png",) if with_masks else (),
            target=folder / "dog/target.png" if n % 2 else None,
            subject=subject,
            meta=meta,
        )
        for n, prompt in enumerate(prompts)
    ]
    write_manifest(folder / "out.jsonl", rows)
    assert load_manifest(folder / "out.jsonl", require_masks=with_masks, check_images=False) == rows


def test_a_row_outside_the_folder_is_not_written(folder: Path) -> None:
    with pytest.raises(UserError, match="outside.png is not inside"):
        write_manifest(folder / "out.jsonl", [Row("a", "p", (folder.parent / "outside.png",))])
    with pytest.raises(ValueError, match="share an id"):
        write_manifest(folder / "out.jsonl", [Row("a", "p", ()), Row("a", "q", ())])
