"""The promises of RunLock."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from customized_grpo.errors import UserError
from customized_grpo.runs.folder import is_unused
from customized_grpo.runs.lock import Held, Holder, RunLock, last_holder

HOLDER = """
import sys, time
from pathlib import Path
from customized_grpo.runs.lock import RunLock
assert "torch" not in sys.modules
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_trainer_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        owner = json.loads((tmp_path / "lock").read_text())
        assert owner.keys() == {"pid", "host", "started"} and owner["pid"] == os.getpid()
        with pytest.raises(UserError, match=f'"pid": {os.getpid()}'), RunLock(tmp_path):
            pass


def test_the_lock_is_free_again_after_leaving_even_by_an_error(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(RuntimeError), lock:
        raise RuntimeError
    with lock, pytest.raises(UserError), RunLock(tmp_path):
        pass


def test_a_killed_trainer_leaves_no_lock_behind(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f'"pid": {holder.pid}'), RunLock(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_two_folders_are_two_locks(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with RunLock(tmp_path / "a") as first, RunLock(tmp_path / "b") as second:
        assert first.descriptor != second.descriptor


def test_a_folder_that_cannot_be_locked_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"), RunLock(tmp_path / "missing"):
        pass


@pytest.mark.parametrize("umask", [0o002, 0o027])
def test_the_mode_of_its_file_follows_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    with RunLock(tmp_path):
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o666 & ~umask


# File systems without locks


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_where_there_are_no_locks_a_file_does_their_work(
    tmp_path: Path, without_locks: None, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        with caplog.at_level(logging.WARNING), RunLock(tmp_path):
            assert "has no locks" in caplog.text
            assert is_unused(tmp_path), "a run can be created under the lock"
            with pytest.raises(Held, match=f'"pid": {os.getpid()}') as refused, RunLock(tmp_path):
                pass
            assert refused.value.hint is not None and "delete" in refused.value.hint
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]


def owner(**changes: object) -> str:
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": "today", **changes})


def ended_process() -> int:
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_the_file_of_a_killed_trainer_is_taken_over(tmp_path: Path, without_locks: None) -> None:
    (tmp_path / "lock.owner").write_text(owner(pid=ended_process()))
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "lock.owner").read_text())["pid"] == os.getpid()


def test_a_file_whose_owner_may_live_is_respected(tmp_path: Path, without_locks: None) -> None:
    for content in (owner(), owner(pid=ended_process(), host="elsewhere"), "", '{"pid"'):
        (tmp_path / "lock.owner").write_text(content)
        with pytest.raises(Held), RunLock(tmp_path):
            pass
        assert (tmp_path / "lock.owner").read_text() == content


def test_a_disk_that_fails_is_not_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compare` waits for another process; for a disk it would wait for ever."""

    def flock(*_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match="Input/output error") as refused, RunLock(tmp_path):
        pass
    assert not isinstance(refused.value, Held)


def holder_of(folder: Path, **changes: object) -> Holder | None:
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": "2999-01-01T00:00:00+00:00"}
    (folder / "lock").write_text(json.dumps({**owner, **changes}))
    return last_holder(folder)


def test_the_holder_of_a_lock_is_known_without_taking_it(tmp_path: Path) -> None:
    assert last_holder(tmp_path) is None
    with RunLock(tmp_path):
        assert last_holder(tmp_path) == Holder(os.getpid(), socket.gethostname(), True, True)


def test_a_holder_that_has_ended_is_not_alive(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"held\n"
    alive = last_holder(tmp_path)
    assert alive is not None and alive.is_alive and alive.pid == child.pid
    child.kill()
    child.communicate()
    ended = last_holder(tmp_path)
    assert ended is not None and ended.is_alive is False


def test_a_process_that_was_born_after_the_lock_was_taken_is_not_its_holder(tmp_path: Path) -> None:
    later = holder_of(tmp_path, started="2001-01-01T00:00:00+00:00")
    assert later is not None and later.is_alive is False
    same = holder_of(tmp_path)
    assert same is not None and same.is_alive is True


def test_a_holder_elsewhere_cannot_be_asked(tmp_path: Path) -> None:
    assert holder_of(tmp_path, host="gpu7") == Holder(os.getpid(), "gpu7", False, None)


@pytest.mark.parametrize("changes", [{"pid": "1"}, {"host": None}, {"started": "soon"}])
def test_a_lock_file_that_does_not_say_has_no_holder(tmp_path: Path, changes: dict[str, object]) -> None:
    assert holder_of(tmp_path, **changes) is None


def test_a_foreign_pid_below_zero_is_nobody(tmp_path: Path) -> None:
    holder = holder_of(tmp_path, pid=-1)
    assert holder is not None and holder.is_alive is False
