"""Every verb on a disk that is full, fails, turns read-only or sees a SIGKILL: a sample of the calls of each.

measurements/disk_faults.py tries all of them, and says what must hold.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import disk_faults
from commands import run_here
from customized_grpo.disk import DISK_ERRORS, check_writable, disk_error
from customized_grpo.errors import UserError
from faulty_disk import FaultyDisk, Killed

WITHOUT_MODELS = ["toybox export", "data convert", "data masks"]
WITH_A_RUN = [name for name in disk_faults.VERBS if name not in WITHOUT_MODELS]


@pytest.fixture(scope="module")
def stand_ins() -> Iterator[None]:
    here = Path.cwd()
    with disk_faults.stand_ins():
        yield
    os.chdir(here)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, stand_ins: None) -> Path:
    folder = tmp_path_factory.mktemp("data")
    disk_faults.make_data(folder)
    return folder


@pytest.fixture(scope="module")
def runs(data: Path) -> Path:
    disk_faults.make_runs(data)
    return data


def assert_nothing_is_lost(name: str, inputs: Path, work: Path, calls: int) -> None:
    figures, findings = disk_faults.measure(name, inputs, work, at_most=calls)
    assert findings == []
    assert figures["trials"] == 4 * calls
    assert figures["one message"] >= calls and figures["killed"] == calls


@pytest.mark.parametrize("name", WITHOUT_MODELS)
def test_data_on_a_failing_disk(name: str, data: Path, tmp_path: Path) -> None:
    assert_nothing_is_lost(name, data, tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_A_RUN)
def test_what_is_made_of_a_run_on_a_failing_disk(name: str, runs: Path, tmp_path: Path) -> None:
    assert_nothing_is_lost(name, runs, tmp_path, 1)


# The faults themselves


def write(folder: Path) -> None:
    """Five calls: make a folder, make a file, write to it, rename it, remove it."""
    (folder / "new").mkdir()
    (folder / "new" / "draft").write_bytes(b"content")
    os.replace(folder / "new" / "draft", folder / "new" / "file")
    (folder / "new" / "file").unlink()


def test_a_disk_counts_the_calls_below_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    disk = FaultyDisk(tmp_path / "a")
    with disk.installed():
        write(tmp_path / "a")
        (tmp_path / "elsewhere").write_text("x")
    assert [call.split()[0] for call in disk.calls] == ["make", "make", "write", "move", "remove"]


@pytest.mark.parametrize(
    ("fault", "at", "left"),
    [
        ("ENOSPC", 1, ["new"]),
        ("EIO", 3, ["new", "new/draft"]),
        ("EROFS", 4, ["new", "new/file"]),
    ],
)
def test_a_call_fails_as_that_of_a_disk(fault: str, at: int, left: list[str], tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised, FaultyDisk(tmp_path, fault, at).installed():
        write(tmp_path)
    assert raised.value.errno == getattr(errno, fault)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == left


def test_a_killed_process_leaves_half_of_a_write_and_cleans_nothing_up(tmp_path: Path) -> None:
    with pytest.raises(Killed), FaultyDisk(tmp_path, "KILL", 2).installed():
        try:
            write(tmp_path)
        finally:
            with pytest.raises(Killed):
                (tmp_path / "new" / "draft").unlink()
    assert (tmp_path / "new" / "draft").read_bytes() == b"con"


# Messages


@pytest.mark.parametrize("number", sorted(DISK_ERRORS))
def test_every_error_of_a_disk_names_the_path_and_what_to_do(number: int, tmp_path: Path) -> None:
    error = disk_error(OSError(number, os.strerror(number), str(tmp_path / "new" / "page.html")))
    assert error.message.startswith(f"{tmp_path}/new/page.html: {os.strerror(number)}")
    assert error.hint is not None and error.hint.endswith(".")


def test_a_full_disk_says_how_much_is_free(tmp_path: Path) -> None:
    error = disk_error(OSError(errno.ENOSPC, "full", str(tmp_path / "no" / "such" / "file")))
    assert "bytes are free there" in error.message


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with (
        FaultyDisk(tmp_path, "EROFS").installed(),
        pytest.raises(UserError, match=f"cannot write to {tmp_path}: Read-only file system"),
    ):
        check_writable(tmp_path)


def test_a_file_for_findings_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # as /dev/null: a test as root must not try that one
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")  # as /dev/stdout
    for name in (tmp_path / "pipe", tmp_path / "link", tmp_path / "none" / "a.json", tmp_path):
        done = run_here("plan", "toybox-smoke", f"--json={name}")
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith(f"error: --json {name}: ")
