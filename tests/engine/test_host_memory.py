"""Freed memory stays with the process: page faults of a second round, in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from customized_grpo.engine import engine
from customized_grpo.engine.host_memory import keep_freed_memory

CPU = torch.device("cpu")
PAGE_FAULTS = """
import resource, sys
import torch
from customized_grpo.engine import engine
from customized_grpo.engine.host_memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory(torch.device("cpu"), {})
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**20) for _ in range(50)]  # 4 MB each
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_second_round(mode: str) -> int:
    """Return how often the system had to find a page for memory that the process had had before."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("GLIBC", "MALLOC"))
    }
    command = [sys.executable, "-c", PAGE_FAULTS, mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    assert faults_of_second_round("keep") < faults_of_second_round("default") / 4


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
