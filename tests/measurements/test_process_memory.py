"""The memory of processes: a command that takes a known amount, and a child that takes another."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from process_memory import MEBIBYTE, Case, peaks, table

pytestmark = pytest.mark.slow

HOLD = """
import sys, time
held = bytearray(int(sys.argv[1]) * 2**20)
held[::4096] = b"x" * len(held[::4096])
time.sleep(3)
"""
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {HOLD!r}, "80"])
{HOLD}
sys.exit(child.wait())
"""


def test_every_process_has_its_own_peak(tmp_path: Path) -> None:
    found = peaks(Case("two", lambda folder: [sys.executable, "-c", PARENT, "200"]), tmp_path)
    assert {role: len(sizes) for role, sizes in found.items()} == {"main": 1, "helper": 1}
    # an interpreter takes some 10 MiB itself
    assert 200 <= found["main"][0] / MEBIBYTE < 240
    assert 80 <= found["helper"][0] / MEBIBYTE < 120
    assert "| two | main | 2" in table({"two": found})


def test_a_command_that_fails_is_an_error_with_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    with pytest.raises(RuntimeError, match="exit status 1\nno such thing"):
        peaks(Case("bad", lambda folder: command), tmp_path)


def test_a_server_is_ended_after_its_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    assert peaks(Case("server", lambda folder: command, serves_s=1), tmp_path)["main"]
