"""A training that is killed again and again, always continued, and compared with an undisturbed one.

usage: kill_loop.py FOLDER [--kills N] [--seed S]

A recipe is trained into FOLDER/whole undisturbed, and into FOLDER/killed with kills, as often as it takes to
reach N. Each session is a forked process that dies at an instant drawn from a seed: before or after any call
that changes the disk (an fsync, a rename, a write, a deletion), inside its first save or counted from its
start, or at any time at all. Prints the counts as JSON:

    kills, resumes, rounds; before_commit and after_commit: kills that left an older or a new checkpoint
    lost: kills after which fewer iterations were saved than before
    stuck: sessions that did not go on: neither killed nor finished
    different: rounds whose end is not that of the undisturbed training, bit for bit
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kill_child
import preloaded  # noqa: F401 what the forks would else import again
from customized_grpo.cli.main import main
from customized_grpo.runs.checkpoints import CheckpointStore
from faulty_runs import start
from same_run import assert_same_run

# One group of two small samples an iteration: what is killed is the saving.
RECIPE = (
    "toybox-smoke",
    "train.iterations=11",
    "train.prompts_per_iteration=1",
    "train.group_size=2",
    "rollout.steps=3",
    "rollout.batch_size=2",
    "train.micro_batch_size=2",
    "train.ema_decay=0.5",
)
INSTANTS_OF_A_SAVE = 64  # with its pruning, about half of them before the commit
INSTANTS_OF_A_START = 40  # the folder of a new run, or what resume writes before its first iteration
SECONDS = 2.0  # of a session that may be killed at any time
SESSIONS = 200  # after which a round is stuck


def die_in_a_save(draw: random.Random) -> None:
    """Kill this process in its first save, or in the next, if that one has fewer instants."""
    instant = draw.randrange(INSTANTS_OF_A_SAVE)
    save = CheckpointStore.save

    def counted(self: CheckpointStore, *args: Any) -> Path:
        CheckpointStore.save = save  # type: ignore[method-assign]
        kill_child.install(instant)
        return save(self, *args)

    CheckpointStore.save = counted  # type: ignore[method-assign]


def die_at_the_start(draw: random.Random) -> None:
    """Kill this process at a change of the disk, counted from its beginning."""
    kill_child.install(draw.randrange(INSTANTS_OF_A_START))


def die_at_any_time(draw: random.Random) -> None:
    """Kill this process after some time; an alarm that nobody handles ends it as abruptly as SIGKILL."""
    signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.01, SECONDS))


WAYS: tuple[Callable[[random.Random], None], ...] = (die_in_a_save, die_at_the_start, die_at_any_time)


def session(arguments: list[str], printed: Path, die: Callable[[], None] | None) -> int:
    """Return the wait status of one command, which may be prepared to die."""

    def work() -> int:
        if die is not None:
            die()
        return main(arguments)

    return os.waitpid(start(work, {}, printed), 0)[1]


def latest(run: Path) -> int:
    """Return the last iteration that is saved; 0: none is."""
    return CheckpointStore(run / "checkpoints", 0).latest() or 0


def loop(run: Path, draw: random.Random, ways: int, counts: Counter[str]) -> bool:
    """Kill and continue until the run is finished; return whether it is.

    Args:
        run: Its folder.
        draw: The source of all instants.
        ways: How many of `WAYS` are used.
        counts: What happened, added to.
    """
    printed = run.with_name("printed.txt")
    arguments = ["train", *RECIPE, f"run.dir={run}"]
    for _ in range(SESSIONS):
        saved = latest(run)
        way = draw.choice(WAYS[:ways])
        seed = draw.random()
        status = session(arguments, printed, lambda way=way, seed=seed: way(random.Random(seed)))
        counts["lost"] += latest(run) < saved
        if os.WIFEXITED(status):
            counts["stuck"] += os.WEXITSTATUS(status) != 0
            return os.WEXITSTATUS(status) == 0
        assert os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGALRM)
        counts["kills"] += 1
        counts["after_commit" if latest(run) > saved else "before_commit"] += 1
        if latest(run):
            counts["resumes"] += 1
            arguments = ["resume", str(run)]
        else:  # nothing was committed yet: there is nothing to lose, and it starts again
            arguments = ["train", *RECIPE, f"run.dir={run}", "run.overwrite=true"]
    counts["stuck"] += 1
    return False


def same(run: Path, reference: Path) -> bool:
    """Return whether two runs left the same behind; otherwise say where they differ, and keep the run."""
    try:
        assert_same_run(run, reference)
    except AssertionError:
        traceback.print_exc()
        shutil.copytree(run, run.with_name(f"different-{time.time_ns()}"))
        return False
    return True


def kill_loop(root: Path, kills: int, seed: int) -> Counter[str]:
    """Return what happened in at least that many kills, in rounds until there were enough."""
    whole = root / "whole"
    killed = root / "killed"
    assert session(["train", *RECIPE, f"run.dir={whole}"], root / "printed.txt", None) == 0
    counts: Counter[str] = Counter(lost=0, stuck=0, different=0)
    draw = random.Random(seed)
    # The tests kill inside saves only: a short run has few other instants.
    ways = 1 if kills == 0 else len(WAYS)
    while not counts["rounds"] or counts["kills"] < kills:
        shutil.rmtree(killed, ignore_errors=True)
        counts["rounds"] += 1
        if loop(killed, draw, ways, counts):
            counts["different"] += not same(killed, whole)
        if kills:
            print(json.dumps(counts), file=sys.stderr, flush=True)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=0, help="at least so many; 0: one round, in saves alone")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    counts = kill_loop(options.folder, options.kills, options.seed)
    print(json.dumps({**counts, "cpu_s": round(sum(os.times()[:4]))}))
    sys.exit(int(bool(counts["lost"] or counts["stuck"] or counts["different"])))
