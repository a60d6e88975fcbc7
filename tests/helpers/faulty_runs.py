"""Run by the tests of this folder: `cgrpo train` and `resume` in forked processes, with faults in the middle.

usage: faulty_runs.py PLAN FOLDER

PLAN is a JSON list of scenarios, each trained into FOLDER/NAME, met by its fault, and resumed without one.
What became of them is written to FOLDER/results.json: for both sessions the exit status of every process,
what it printed, and how long the session took.

The processes find each other by RANK, WORLD_SIZE and MASTER_*, as under any launcher, but nobody watches
them: no agent ends those that a dead one leaves behind. A fault is a signal that a process sends to itself
in the middle of a phase, so that nothing depends on timing, or an infinite loss.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import preloaded  # noqa: F401 what the forks would else import again
from children import leave_with
from customized_grpo.cli.main import main
from customized_grpo.engine.engine import Engine
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.rewards.executors import Scorer
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.training.losses import LossTerm, UpdateLoss
from forked import free_port, launcher_variables
from interrupted_train import install

# phase: (method of Drawing or Trainer, what is called in it, finished iterations at that time)
PHASES: dict[str, tuple[str, tuple[Any, str], int]] = {
    "rollout": ("collect", (Flux1Policy, "velocity"), 1),
    "reward": ("score", (Scorer, "collect"), 1),
    "update": ("update", (Engine, "backward"), 1),
    "evaluation": ("evaluate", (Flux1Policy, "velocity"), 2),
    "save": ("save", (CheckpointStore, "save"), 2),  # in the main process; the others wait for it
}
LIMIT_S = 300  # after which a process hangs; a busy machine is ten times slower than a quiet one


def spoil_losses() -> None:
    """Make the loss of the second update infinite in this process; its gradient stays finite."""
    terms = UpdateLoss.terms
    updates = 0

    def spoiled(self: UpdateLoss, *args: Any) -> Iterator[LossTerm]:
        nonlocal updates
        updates += 1
        for term in terms(self, *args):
            yield replace(term, loss=term.loss + math.inf) if updates == 2 else term

    UpdateLoss.terms = spoiled  # type: ignore[method-assign]


def start(work: Callable[[], Any], environment: dict[str, str], printed: Path) -> int:
    """Fork a process that does `work` and exits with its status; returns its id."""
    child = os.fork()
    if child:
        return child

    def print_into_file() -> Any:
        os.environ.update(environment)
        file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        return work()

    leave_with(print_into_file)


def finish(processes: list[int], stopped: int | None) -> list[int]:
    """Return the exit statuses, -9 for what was killed; a process that hangs is.

    Args:
        processes: Their ids.
        stopped: One that a fault stops for ever, to be killed when the others have ended.
    """
    statuses: dict[int, int] = {}
    end = time.monotonic() + LIMIT_S
    while len(statuses) < len(processes):
        left = set(processes) - statuses.keys()
        if time.monotonic() > end or left == {stopped}:
            for child in left:
                os.kill(child, signal.SIGKILL)
        for child in left:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                statuses[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return [statuses[child] for child in processes]


def session(
    arguments: list[str], processes: int, folder: Path, fault: dict[str, Any] | None
) -> dict[str, Any]:
    """Run one command in that many processes, one of which may have a fault."""
    port = free_port()
    begin = time.monotonic()
    children = []
    for rank in range(processes):

        def work(rank: int = rank) -> int:
            if fault is None or fault["rank"] != rank:
                return main(arguments)
            if fault["phase"] == "loss":
                spoil_losses()
            else:
                phase, place, iteration = PHASES[fault["phase"]]
                install(signal.Signals[fault["signal"]], iteration, phase, place)
            return main(arguments)

        variables = launcher_variables(rank, processes, port)
        children.append(start(work, variables, folder / f"printed_{rank}.txt"))
    stopped = None if fault is None or fault.get("signal") != "SIGSTOP" else children[fault["rank"]]
    statuses = finish(children, stopped)
    return {
        "statuses": statuses,
        "printed": [(folder / f"printed_{rank}.txt").read_text() for rank in range(processes)],
        "seconds": round(time.monotonic() - begin, 2),
    }


def run(scenario: dict[str, Any], root: Path) -> dict[str, Any]:
    """Train, meet the fault, resume."""
    folder, processes, fault = root / scenario["name"], scenario["processes"], scenario.get("fault")
    arguments = ["train", "toybox-smoke", f"run.dir={folder}", *scenario["overrides"]]
    first = session(arguments, processes, root, fault)
    if fault is None:
        return {"first": first}
    steps = CheckpointStore(folder / "checkpoints", 0).steps()
    return {
        "first": first,
        "steps": steps,
        "resumed": session(["resume", str(folder)], processes, root, None),
    }


if __name__ == "__main__":
    plan, root = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    results = {scenario["name"]: run(scenario, root) for scenario in plan}
    (root / "results.json").write_text(json.dumps(results))
