"""The promises of RunLock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from customized_grpo.errors import UserError
from customized_grpo.runs.lock import RunLock

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
