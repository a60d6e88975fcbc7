"""Run by test_checkpoints.py: forks a saver per kill point, which SIGKILLs itself there; prints their number.

A kill point is the instant before or after any fsync, rename, file write or deletion inside the second save.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from customized_grpo.runs import checkpoints as store_module


def content(step: int) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """What the tests save at a step."""
    tensors = {
        "adapter": {"down": torch.full((3, 2), float(step)), "up": torch.arange(4) + step},
        "optimizer": {"0.step": torch.tensor(float(step))},
    }
    return tensors, {"iteration": step, "cursor": [step, 1]}


def install(kill_at: int) -> Callable[[], int]:
    """Wrap every call that changes the disk; the process dies at the `kill_at`-th instant (-1: never)."""
    instants = 0

    def instant() -> None:
        nonlocal instants
        if instants == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        instants += 1

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def around(*args: Any, **kwargs: Any) -> Any:
            instant()
            result = call(*args, **kwargs)
            instant()
            return result

        return around

    os.fsync = wrapped(os.fsync)
    os.replace = wrapped(os.replace)
    os.unlink = wrapped(os.unlink)
    os.rmdir = wrapped(os.rmdir)
    os.mkdir = wrapped(os.mkdir)
    safetensors.torch.save_file = wrapped(safetensors.torch.save_file)
    return lambda: instants


def save_and_die(folder: Path, kill_at: int) -> int:
    """Fork a child that saves steps 1 and 2 with keep=1, dying inside the second; return its wait status."""
    child = os.fork()
    if child == 0:
        store = store_module.CheckpointStore(folder, keep=1)
        store.save(1, *content(1))
        count = install(kill_at)
        store.save(2, *content(2))
        if kill_at == -1:
            (folder / "instants").write_text(str(count()))
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main(root: Path) -> None:
    """Count the instants of one undisturbed save, then kill a child at each of them."""
    counting = root / "counting"
    assert save_and_die(counting, -1) == 0
    instants = int((counting / "instants").read_text())
    shutil.rmtree(counting)
    for kill_at in range(instants):
        status = save_and_die(root / f"kill_{kill_at:03d}", kill_at)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (kill_at, status)
    print(instants)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
