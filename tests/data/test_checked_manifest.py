"""A manifest is checked whole once; later starts decode what has changed, and trust nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from customized_grpo.data import checked_manifest, file_table, image_info, manifest_index
from customized_grpo.data.checked_manifest import CheckedManifest, open_manifest
from customized_grpo.data.manifest import load_manifest
from customized_grpo.data.manifest_index import index_path
from customized_grpo.errors import UserError

N_FILES = 7  # two rows of a reference, a mask and a target, and one with a reference of its own


@pytest.fixture(autouse=True)
def small_and_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few new files leave an index, as many old ones do."""
    monkeypatch.setattr(checked_manifest, "MANY_FILES", 3)
    monkeypatch.setattr(file_table, "RECENT_NS", 0)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows: list[dict[str, Any]] = []
    for number in range(2):
        for name in ("a", "t"):
            Image.new("RGB", (12, 8), (40 * number, len(name), 9)).save(folder / f"{number}{name}.png")
        mask = Image.new("L", (12, 8))
        mask.paste(255, (1, 2, 6, 7))
        mask.save(folder / f"{number}m.png")
        files = {"references": [f"{number}a.png"], "masks": [f"./{number}m.png"], "target": f"{number}t.png"}
        rows.append({"id": f"r{number}", "prompt": "a dog", "subject": "rex", **files})
    Image.new("RGB", (10, 10), "red").save(folder / "c.png")
    rows.append({"id": "last", "prompt": "a cat", "references": ["c.png"], "meta": {"n": 1}})
    return write(folder / "train.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\ufeff" + "\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded from now on."""
    names: list[str] = []

    def watch(name: str) -> None:
        real: Callable[[Path], Image.Image] = getattr(image_info, name)
        monkeypatch.setattr(image_info, name, lambda file: names.append(file.name) or real(file))

    watch("open_image")
    watch("open_mask")
    return names


def opened(manifest: Path, *, require_masks: bool = False) -> CheckedManifest:
    return open_manifest(manifest, require_masks=require_masks)


def same(one: CheckedManifest, other: CheckedManifest) -> bool:
    for name in manifest_index.ARRAYS:
        if not np.array_equal(getattr(one.files, name), getattr(other.files, name)):
            return False
    return (one.files.names, one.subjects, one.fingerprint) == (
        other.files.names,
        other.subjects,
        dict(other.fingerprint),
    )


def test_the_rows_are_those_of_the_manifest(manifest: Path) -> None:
    rows = opened(manifest).rows
    expected = load_manifest(manifest, require_masks=False)
    assert list(rows) == expected and rows[-1] == expected[2] and rows[1:] == expected[1:]
    assert [item["id"] for item in rows.items()] == ["r0", "r1", "last"]
    assert rows.texts()[2] == ("last", "a cat")
    with pytest.raises(IndexError):
        rows[3]


def test_a_second_start_decodes_nothing_and_finds_the_same(manifest: Path, decoded: list[str]) -> None:
    first = opened(manifest)
    assert len(decoded) == N_FILES and first.subjects == {"rex", "last"}
    assert first.files.info(1).box == (1, 2, 6, 7) and first.files.is_reference.sum() == 3
    decoded.clear()
    assert same(first, opened(manifest)) and not decoded


def test_without_an_index_the_same_is_found(manifest: Path, decoded: list[str]) -> None:
    first = opened(manifest)
    index_path(manifest).unlink()
    decoded.clear()
    assert same(first, opened(manifest)) and len(decoded) == N_FILES


def test_a_changed_image_is_decoded_again_though_its_size_and_its_time_are_the_old_ones(
    manifest: Path, decoded: list[str]
) -> None:
    before = opened(manifest)
    file = manifest.parent / "0t.png"
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[-30] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    decoded.clear()
    with pytest.raises(UserError, match=r"line 1: .*0t\.png cannot be decoded"):
        opened(manifest)
    assert decoded == ["0t.png"]
    Image.new("RGB", (12, 8), "blue").save(file)
    after = opened(manifest)
    assert after.fingerprint["rows"] == before.fingerprint["rows"]
    assert after.fingerprint["images"] != before.fingerprint["images"]


def test_a_mask_of_another_size_than_its_known_reference_is_found(manifest: Path) -> None:
    opened(manifest)
    mask = Image.new("L", (12, 9))
    mask.paste(255, (1, 2, 6, 7))
    mask.save(manifest.parent / "1m.png")
    with pytest.raises(UserError, match=r"line 3: mask .*1m\.png is 12 x 9 pixels, its reference 12 x 8"):
        opened(manifest)


def test_a_reference_of_another_size_than_its_known_mask_is_found(manifest: Path) -> None:
    opened(manifest)
    Image.new("RGB", (12, 9)).save(manifest.parent / "1a.png")
    with pytest.raises(UserError, match=r"line 3: mask .*1m\.png is 12 x 8 pixels, its reference 12 x 9"):
        opened(manifest)


def test_changed_files_of_the_same_lines_are_opened_and_no_line_is_read(
    manifest: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = opened(manifest)
    decoded.clear()
    mask = Image.new("L", (12, 8))
    mask.paste(255, (3, 3, 9, 8))
    mask.save(manifest.parent / "1m.png")
    Image.new("RGB", (12, 8), "blue").save(manifest.parent / "0a.png")
    with monkeypatch.context() as patched:
        patched.delattr(checked_manifest, "_read_lines")
        renewed = opened(manifest)
        assert decoded == ["0a.png", "1m.png"]
        assert same(renewed, opened(manifest)) and len(decoded) == 2  # the index has been renewed as well
    assert renewed.files.info(4).box == (3, 3, 9, 8) and renewed.fingerprint != before.fingerprint
    index_path(manifest).unlink()
    assert same(renewed, opened(manifest))


def test_a_file_that_became_a_link_out_of_the_folder_is_refused(manifest: Path, tmp_path: Path) -> None:
    opened(manifest)
    Image.new("RGB", (10, 10), "red").save(tmp_path / "outside.png")
    (manifest.parent / "c.png").unlink()
    (manifest.parent / "c.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(UserError, match=r"line 5: `references`: 'c\.png' is a link that leaves"):
        opened(manifest)


def test_a_row_more_costs_its_own_files_and_a_bad_one_is_found(manifest: Path, decoded: list[str]) -> None:
    opened(manifest)
    decoded.clear()
    Image.new("RGB", (5, 5)).save(manifest.parent / "new.png")
    new = {"id": "new", "prompt": "p", "references": ["new.png"]}
    with manifest.open("a") as file:
        file.write("\n" + json.dumps(new))
    assert len(opened(manifest).rows) == 4 and decoded == ["new.png"]
    with manifest.open("a") as file:
        file.write("\n" + json.dumps({**new, "prompt": ""}))
    with pytest.raises(UserError, match="line 7: `prompt` is empty\n  line 7: id 'new' was used on line 6"):
        opened(manifest)


def test_masks_that_are_now_required_are_missed(manifest: Path) -> None:
    opened(manifest)
    with pytest.raises(UserError, match="line 5: has no `masks`"):
        opened(manifest, require_masks=True)


def test_files_of_this_very_moment_are_not_relied_on(
    manifest: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_table, "RECENT_NS", 10**12)
    first = opened(manifest)
    decoded.clear()
    assert first.fingerprint == opened(manifest).fingerprint and len(decoded) == N_FILES


def test_few_files_leave_no_index(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked_manifest, "MANY_FILES", N_FILES + 1)
    opened(manifest)
    assert not index_path(manifest).exists()


def test_an_index_that_cannot_be_written_is_a_note(manifest: Path) -> None:
    index_path(manifest).mkdir()  # root, whom a folder's mode does not stop, cannot write it either
    checked = opened(manifest)
    assert len(checked.rows) == 3
    (note,) = checked.notes
    assert ".train.jsonl.index cannot be written" in note and "7 files of train.jsonl again" in note


def test_progress_is_shown_of_what_is_decoded(manifest: Path, capfd: pytest.CaptureFixture[str]) -> None:
    open_manifest(manifest, require_masks=False, show=True)
    assert "checking images of train.jsonl 7/7" in capfd.readouterr().err
    open_manifest(manifest, require_masks=False, show=True)
    assert capfd.readouterr().err == ""


# An index from elsewhere


def edited(manifest: Path, **changes: Any) -> None:
    """Change arrays or texts of the index."""
    path = index_path(manifest)
    arrays = load_file(path)
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    metadata = {"checks": manifest_index.CHECKS, "has_masks": "false", "n_bare": "0", "manifest": digest}
    metadata |= {"fingerprint.rows": "r", "fingerprint.images": "i"}
    for name, value in changes.items():
        (metadata if isinstance(value, str) else arrays)[name] = value
    save_file(arrays, path, metadata)


def text(value: str) -> np.ndarray:
    return np.frombuffer(value.encode(), np.uint8)


NAMES = "0a.png\x000m.png\x000t.png\x001a.png\x001m.png\x001t.png\x00"


def test_the_edited_index_is_taken_where_nothing_is_wrong_with_it(manifest: Path, decoded: list[str]) -> None:
    opened(manifest)
    decoded.clear()
    edited(manifest)
    assert opened(manifest).fingerprint["rows"] == "r" and not decoded


@pytest.mark.parametrize(
    "changes",
    [
        {"checks": "0"},
        {"has_masks": "nonsense"},
        {"n_bare": "nonsense"},
        {"names": text(NAMES + "/etc/passwd")},
        {"names": text("/etc/passwd\x00" + NAMES[:-1])},
        {"names": text(NAMES + "../c.png")},
        {"names": text(NAMES[:-1])},
        {"names": np.array([255], np.uint8)},
        {"names": np.zeros(3)},
        {"stamps": np.zeros((2, 3), np.int64)},
        {"stamps": np.zeros((7, 3), np.float64)},
        {"places": np.array([7], np.int32)},
        {"places": np.array([-1], np.int32)},
        {"places": np.zeros((2, 2), np.int32)},
        {"places": np.zeros(3, np.int64)},
        {"subjects": text("[1]")},
        {"subjects": text("[" * 100_000)},
    ],
    ids=str,
)
def test_an_index_that_is_none_counts_as_missing(
    manifest: Path, decoded: list[str], changes: dict[str, Any]
) -> None:
    expected = opened(manifest)
    decoded.clear()
    edited(manifest, **changes)
    assert same(expected, opened(manifest)) and len(decoded) == N_FILES
    decoded.clear()
    assert same(expected, opened(manifest)) and not decoded, "it was written again"


@pytest.mark.parametrize("kind", ["cut", "empty", "large", "link", "pipe"])
def test_what_is_no_ordinary_small_file_counts_as_missing(
    manifest: Path, decoded: list[str], kind: str, tmp_path: Path
) -> None:
    expected = opened(manifest)
    path = index_path(manifest)
    content = path.read_bytes()
    path.unlink()
    if kind == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes({"cut": content[:-9], "empty": b"", "large": content + bytes(2 << 20)}[kind])
    decoded.clear()
    found = opened(manifest)
    assert same(expected, found) and len(decoded) == N_FILES
    assert bool(found.notes) == (kind == "pipe")
    if kind == "link":
        assert (tmp_path / "elsewhere").read_bytes() == content and not path.is_symlink()


def test_no_index_lets_a_row_lead_out_of_the_folder(manifest: Path, tmp_path: Path) -> None:
    Image.new("RGB", (5, 5)).save(tmp_path / "private.png")
    opened(manifest)
    write(manifest, [{"id": "x", "prompt": "p", "references": ["../private.png"]}])
    edited(manifest)  # claims that this very manifest was checked
    rows = opened(manifest).rows
    with pytest.raises(UserError, match="contains `..`"):
        rows[0]
