"""The fingerprint of a manifest: it follows content, not places."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from customized_grpo.data.checked_manifest import open_manifest
from customized_grpo.errors import UserError
from customized_grpo.files import sampled_sha256
from sources import save

ROWS = [
    {"id": "a", "prompt": "a dog", "references": ["a.png"], "subject": "dog"},
    {"id": "b", "prompt": "a cat", "references": ["b.png"], "target": "c.png", "meta": {"n": 1}},
]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        save(folder / f"{name}.png", colour)
    return write(folder / "train.jsonl", ROWS)


def fingerprint_manifest(path: Path) -> dict[str, str]:
    return dict(open_manifest(path, require_masks=False).fingerprint)


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_data_set_may_be_moved_and_its_json_written_in_another_way(manifest: Path, tmp_path: Path) -> None:
    before = fingerprint_manifest(manifest)
    assert before["rows"].startswith("2 rows, ") and before["images"].startswith("3 files, ")
    moved = Path(shutil.copytree(manifest.parent, tmp_path / "moved")) / "train.jsonl"
    moved.write_text(moved.read_text().replace('": ', '":  '))
    assert fingerprint_manifest(moved) == before


def test_other_rows_are_other_rows(manifest: Path) -> None:
    before = fingerprint_manifest(manifest)
    for rows in (
        ROWS[:1],
        ROWS[::-1],
        [{**ROWS[0], "prompt": "a fox"}, ROWS[1]],
        [ROWS[0], {**ROWS[1], "meta": {}}],
    ):
        assert fingerprint_manifest(write(manifest, rows))["rows"] != before["rows"]


@pytest.mark.parametrize("name", ["a.png", "c.png"])
def test_a_byte_of_an_image_or_target_is_noticed(manifest: Path, name: str) -> None:
    before = fingerprint_manifest(manifest)
    file = manifest.parent / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # in the checksum of the end mark, which nobody asks for
    file.write_bytes(content)
    now = fingerprint_manifest(manifest)
    assert now["rows"] == before["rows"] and now["images"] != before["images"]


def test_a_missing_image_is_a_message(manifest: Path) -> None:
    (manifest.parent / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png"):
        fingerprint_manifest(manifest)


def test_of_a_large_file_blocks_are_read_and_of_a_small_one_everything(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(100))
    digests = {sampled_sha256(file, n_blocks=5, block_bytes=10)}
    for place in (0, 9, 99, 45):  # of the blocks 0-9, 22-31, 45-54, 67-76 and 90-99
        content = bytearray(100)
        content[place] = 1
        file.write_bytes(content)
        digests.add(sampled_sha256(file, n_blocks=5, block_bytes=10))
    assert len(digests) == 5
    file.write_bytes(bytes(99))
    assert sampled_sha256(file, n_blocks=5, block_bytes=10) not in digests
    for place in range(40):
        content = bytearray(40)
        content[place] = 1
        file.write_bytes(content)
        digests.add(sampled_sha256(file, n_blocks=5, block_bytes=10))
    assert len(digests) == 45, "a file of no more than its blocks is read whole"
