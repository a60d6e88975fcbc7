"""Run by test_kill_loop.py: a training that is SIGKILLed inside its saves again and again, always resumed.

usage: kill_loop.py FOLDER [KEY=VALUE ...]

The same recipe is trained into FOLDER/whole undisturbed and into FOLDER/killed with kills. Each session is a
forked process that dies at an instant drawn from a seed: before or after any call that changes the disk (an
fsync, a rename, a write, a deletion) inside its first save. Prints the counts as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import kill_child
from customized_grpo.cli.main import main
from customized_grpo.config import load_config
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.training import parts as components
from faulty_runs import start

INSTANTS = 64  # of a save with its pruning, about half of them before the commit
LIMIT = 200  # sessions


def die_in_a_save(instant: int) -> None:
    """Kill this process at that instant of its first save, or of the next, if that one has fewer."""
    save = CheckpointStore.save

    def counted(self: CheckpointStore, *args: Any) -> Path:
        CheckpointStore.save = save  # type: ignore[method-assign]
        kill_child.install(instant)
        return save(self, *args)

    CheckpointStore.save = counted  # type: ignore[method-assign]


def session(arguments: list[str], printed: Path, instant: int | None) -> int:
    """Return the wait status of one command, killed at that instant of a save."""

    def work() -> int:
        if instant is not None:
            die_in_a_save(instant)
        return main(arguments)

    return os.waitpid(start(work, {}, printed), 0)[1]


def latest(run: Path) -> int:
    return CheckpointStore(run / "checkpoints", 0).latest() or 0


def loop(run: Path, recipe: list[str], seed: int) -> dict[str, int]:
    """Kill and resume until the run is finished."""
    draw = random.Random(seed)
    counts = {"kills": 0, "before_commit": 0, "after_commit": 0, "resumes": 0, "losses": 0}
    arguments = ["train", *recipe, f"run.dir={run}"]
    for _ in range(LIMIT):
        saved = latest(run)
        status = session(arguments, run.with_name("printed.txt"), draw.randrange(INSTANTS))
        if latest(run) < saved:
            counts["losses"] += 1
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, run.with_name("printed.txt").read_text()
            return counts
        assert os.WTERMSIG(status) == signal.SIGKILL
        counts["kills"] += 1
        counts["after_commit" if latest(run) > saved else "before_commit"] += 1
        if latest(run):
            counts["resumes"] += 1
            arguments = ["resume", str(run)]
        else:  # nothing was committed yet: there is nothing to lose, and it starts again
            arguments = ["train", *recipe, f"run.dir={run}", "run.overwrite=true"]
    raise AssertionError(f"not finished after {LIMIT} sessions: {counts}")


if __name__ == "__main__":
    root, recipe = Path(sys.argv[1]), ["toybox-smoke", *sys.argv[2:]]
    config = load_config("toybox-smoke")
    parts = components.build_data(config).train[0], components.build_policy(config)
    assert session(["train", *recipe, f"run.dir={root / 'whole'}"], root / "printed.txt", None) == 0
    counts = loop(root / "killed", recipe, seed=0)
    print(json.dumps({**counts, "cpu_s": round(sum(os.times()[:4]))}))
