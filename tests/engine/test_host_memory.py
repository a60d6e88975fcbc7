"""Freed memory stays with the process: page faults of a second round, in processes of their own."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch

from customized_grpo.engine import device, engine
from customized_grpo.engine.host_memory import keep_freed_memory, kept_bytes

CPU = torch.device("cpu")
SECOND_ROUND = """
import resource, sys
import torch
from customized_grpo.engine.host_memory import keep_freed_memory, kept_bytes

if sys.argv[1] == "keep":
    assert keep_freed_memory(torch.device("cpu"), {})
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**20) for _ in range(50)]  # 4 MB each
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, kept_bytes())
"""
glibc_alone = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")


def second_round(mode: str) -> tuple[int, int]:
    """Return page faults for 200 MB that a process has had before, and the bytes that it keeps afterwards."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("GLIBC", "MALLOC"))
    }
    command = [sys.executable, "-c", SECOND_ROUND, mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    faults, kept = done.stdout.split()
    return int(faults), int(kept)


@pytest.mark.slow
@glibc_alone
def test_memory_that_was_freed_is_kept_counted_and_not_asked_for_again() -> None:
    faults, kept = second_round("keep")
    usual_faults, _ = second_round("default")  # what else glibc keeps varies from process to process
    assert faults < usual_faults / 4
    assert 200e6 < kept < 400e6


def test_what_is_kept_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "kept_bytes", lambda: 0)
    without = device.free_bytes(CPU)
    monkeypatch.setattr(device, "kept_bytes", lambda: 2**50)
    assert device.free_bytes(CPU) - without == pytest.approx(2**50, rel=0.01)


@pytest.mark.parametrize("missing", ["glibc", "mallinfo2"])
def test_where_the_c_library_does_not_tell_nothing_is_kept(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "glibc":
        monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    else:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert kept_bytes() == 0


@pytest.mark.parametrize(
    "name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD"]
)
def test_a_users_own_settings_stay(name: str) -> None:
    assert not keep_freed_memory(CPU, {name: "something"})


def test_processes_on_an_accelerator_are_left_alone() -> None:
    assert not keep_freed_memory(torch.device("cuda"), {})


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert not keep_freed_memory(CPU, {})


def test_every_engine_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(engine, "keep_freed_memory", asked.append)
    engine.Engine(CPU)
    assert asked == [CPU]
