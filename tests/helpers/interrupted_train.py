"""Run by test_trainer.py: `cgrpo train`, forked once per place where a signal comes; prints exit statuses.

Each child sends the signal to itself in the middle of a phase, so that no test depends on timing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import preloaded  # noqa: F401 what the forks would else import again
from customized_grpo.cli.main import main
from customized_grpo.engine.engine import Engine
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.rewards.executors import Scorer
from customized_grpo.training import trainer
from customized_grpo.training.drawing import Drawing

# name: (signal, iteration, method of Drawing or Trainer that is the phase, what is called in it)
PLACES: dict[str, tuple[signal.Signals, int, str, tuple[Any, str]]] = {
    "term_in_first_rollout": (signal.SIGTERM, 0, "collect", (Flux1Policy, "velocity")),
    "term_in_reward": (signal.SIGTERM, 1, "score", (Scorer, "collect")),
    "term_in_update": (signal.SIGTERM, 1, "update", (Engine, "backward")),
    "int_in_rollout": (signal.SIGINT, 1, "collect", (Flux1Policy, "velocity")),
}


def install(number: signal.Signals, iteration: int, phase: str, place: tuple[Any, str]) -> None:
    """Send the signal at the first call of `place` inside the phase of that iteration."""
    owner, name = place
    phases: Any = Drawing if hasattr(Drawing, phase) else trainer.Trainer
    call, method = getattr(owner, name), getattr(phases, phase)
    inside = False

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:
            inside = False
            os.kill(os.getpid(), number)
        return call(*args, **kwargs)

    def run_phase(self: Any, *args: Any) -> Any:
        nonlocal inside
        inside = self.state.iteration == iteration
        return method(self, *args)

    setattr(owner, name, called)
    setattr(phases, phase, run_phase)


def in_child(work: Callable[[], int]) -> int:
    """Return the exit status of work() in a forked process."""
    child = os.fork()
    if child == 0:
        try:
            code = work()
        except SystemExit as stop:
            code = int(stop.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(name: str, folder: Path, overrides: list[str]) -> int:
    """Train into folder/name, interrupted at that place."""
    install(*PLACES[name])
    return main(["train", "toybox-smoke", f"run.dir={folder / name}", *overrides])


if __name__ == "__main__":
    root, arguments = Path(sys.argv[1]), sys.argv[2:]
    statuses = {name: in_child(lambda name=name: train(name, root, arguments)) for name in PLACES}  # type: ignore[misc]
    (root / "statuses.json").write_text(json.dumps(statuses))
