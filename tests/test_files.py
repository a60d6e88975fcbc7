"""One step writes, the mode of what is written, and checked reading of JSON."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from customized_grpo.errors import UserError
from customized_grpo.files import (
    DRAFT_ENDING,
    creating,
    file_sha256,
    follow_umask,
    is_free,
    new_folder,
    read_json,
    replacing,
    write_bytes,
    write_json,
    write_tensors,
    write_text,
)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_mode_follows_the_umask_also_where_safetensors_writes(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        files = [
            write_bytes(tmp_path / "bytes", b"x"),
            write_text(tmp_path / "text", "ü"),
            write_json(tmp_path / "json", {"a": 1}),
            write_tensors(tmp_path / "tensors", {"a": torch.zeros(2)}),
            tmp_path / "of_a_library.safetensors",
        ]
        safetensors.torch.save_file({"a": torch.zeros(2)}, files[-1])
        follow_umask(tmp_path)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o666 & ~umask] * 5


def test_failure_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    file = write_text(tmp_path / "page.html", "old")
    with pytest.raises(RuntimeError), replacing(file) as draft:
        draft.write_text("half")
        raise RuntimeError
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"loss": float("nan")})
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_readers_see_the_old_or_the_new_file(tmp_path: Path) -> None:
    file = write_text(tmp_path / "a.json", "1" * 100_000)

    def write(digit: str) -> None:
        for _ in range(50):
            write_text(file, digit * 100_000, durable=False)

    writers = [threading.Thread(target=write, args=(digit,)) for digit in "12"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        content = file.read_text()
        assert content in ("1" * 100_000, "2" * 100_000)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("has_links", [True, False])
def test_of_many_that_create_a_file_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    file = tmp_path / "0000.png"
    with pytest.raises(FileExistsError), creating(file) as late:
        late.write_text("late")
        with creating(file) as draft:
            draft.write_text("early")
    with pytest.raises(FileExistsError), creating(file):
        pass
    assert file.read_text() == "early" and list(tmp_path.iterdir()) == [file]


def test_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    precious = write_text(tmp_path / "precious", "mine")
    link = tmp_path / "report.html"
    link.symlink_to(precious)
    write_text(link, "page")
    assert (precious.read_text(), link.read_text(), link.is_symlink()) == ("mine", "page", False)


def test_longest_name_has_room_for_its_draft(tmp_path: Path) -> None:
    name = "\N{SNOWMAN}" * 85  # 255 bytes
    assert write_text(tmp_path / name, "x", durable=True).read_text() == "x"


def test_missing_folder_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "none" / "a", "x")


def test_json_is_read_back(tmp_path: Path) -> None:
    file = write_json(tmp_path / "a.json", {"prompt": "ein Hündchen"})
    assert read_json(file) == {"prompt": "ein Hündchen"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "a JSON object is needed, not list"),
        (json.dumps({"a": "x" * 100}).encode(), "more than 100 bytes"),
    ],
)
def test_damaged_json_is_an_error_that_names_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "state.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_json(file, max_bytes=100 if len(content) < 1000 else 1 << 20)
    assert str(file) in caught.value.message


def test_missing_json_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file") as caught:
        read_json(tmp_path / "a.json", missing_hint="Make one.")
    assert caught.value.hint == "Make one."
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)


def test_sha256_of_a_file(tmp_path: Path) -> None:
    assert file_sha256(write_bytes(tmp_path / "a", b"abc")).startswith("ba7816bf8f01cfea")


def test_a_folder_appears_with_all_its_files_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "export"
    with pytest.raises(RuntimeError), new_folder(target) as draft:
        write_text(draft / "half", "x")
        raise RuntimeError
    assert list((tmp_path / "runs").iterdir()) == []
    target.mkdir()  # an empty folder may be in the place
    with new_folder(target) as draft:
        write_text(draft / "whole", "x")
        assert is_free(target)
    assert [path.name for path in target.iterdir()] == ["whole"]
    with pytest.raises(OSError), new_folder(target):  # not empty
        pass
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["whole"]


def test_the_draft_of_a_killed_writer_is_removed_by_the_next_and_that_of_a_living_one_is_not(
    tmp_path: Path,
) -> None:
    target = tmp_path / "data"
    left = tmp_path / f".data.{'0' * 16}{DRAFT_ENDING}"
    foreign = [tmp_path / f".data.v2.{'0' * 16}{DRAFT_ENDING}", tmp_path / ".data.mine"]
    for folder in (left, *foreign):
        folder.mkdir()
        write_text(folder / "00.png", "half")
    with pytest.raises(OSError), new_folder(target) as living:
        assert not left.exists() and all(folder.exists() for folder in foreign)
        write_text(living / "00.png", "x")
        with new_folder(target) as other:
            assert (living / "00.png").is_file()
            write_text(other / "00.png", "y")
    assert sorted(tmp_path.iterdir()) == sorted([*foreign, target])


def test_a_pipe_or_device_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="not an ordinary file"):
        write_text(tmp_path / "pipe", "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_what_the_disk_says_of_tensors_is_an_error_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left") as refused:
        write_tensors(tmp_path / "adapter", {"a": torch.zeros(2)})
    assert refused.value.errno == errno.ENOSPC
    assert refused.value.filename == str(tmp_path / "adapter")


def test_the_error_that_came_first_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EIO, "the draft cannot be removed", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="the disk is full"), replacing(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "the disk is full")
