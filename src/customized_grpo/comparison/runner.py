"""Runs the runs of a plan: several processes side by side, each a `cgrpo train` or `cgrpo resume` of its own.

What is finished is never done again, what was interrupted is resumed exactly, and what another comparison on
the same folder is working on is left to it: a claim is a kernel lock that the training process inherits, so
it outlives a comparison that was killed and ends with the training.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from customized_grpo.comparison.plan import Plan, PlannedRun
from customized_grpo.config import dump_config
from customized_grpo.engine.interrupts import StopFlag
from customized_grpo.errors import UserError
from customized_grpo.files import write_text
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.runs.lock import RunLock

POLL_S = 0.2
RETRY_S = 2.0
LOG_LINES = 3
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass
class Active:
    """A run that is being trained, in one of the slots."""

    run: PlannedRun
    slot: int
    process: subprocess.Popen[bytes]
    claim: RunLock
    started: float


def slots(jobs: int, threads: int, gpus: int) -> list[dict[str, str]]:
    """Return the environment of each slot: one GPU in turn, or `threads` threads of the CPU.

    Args:
        jobs: Number of runs side by side.
        threads: Threads of each on a CPU.
        gpus: Number of GPUs that the recipe would use; 0: it runs on the CPU.
    """
    if gpus:
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        devices = visible or [str(index) for index in range(gpus)]
        return [{"CUDA_VISIBLE_DEVICES": devices[job % len(devices)]} for job in range(jobs)]
    return [dict.fromkeys(THREAD_VARIABLES, str(threads)) for _ in range(jobs)]


class Runner:
    """Trains what of a plan is not finished.

    Args:
        plan: The plan.
        environments: One per slot, see `slots`.
        say: Called with a line for people.
        finished: Called after every finished run.
    """

    def __init__(
        self,
        plan: Plan,
        environments: Sequence[Mapping[str, str]],
        say: Callable[[str], None],
        finished: Callable[[], object],
    ) -> None:
        self.plan, self.environments, self.say, self.finished = plan, environments, say, finished
        self.active: list[Active] = []
        self.failed: list[PlannedRun] = []
        self.seconds: list[float] = []
        self.waiting_said = False

    def run(self, stop: StopFlag) -> None:
        """Train until all is finished.

        Raises:
            Interrupted: A signal came; the runs have saved and stopped.
            UserError: Runs failed; the others are finished.
        """
        runs = self.plan.runs()
        self.pending = [run for run in runs if run.summary() is None]
        self.say(
            f"{len(runs)} runs, {len(runs) - len(self.pending)} finished, {len(self.environments)} at a time"
        )
        try:
            while self.pending or self.active:
                stop.check()
                self._fill()
                time.sleep(POLL_S if self.active else RETRY_S)
                self._collect()
        finally:
            self._stop_all()  # none is left unless something went wrong
        if self.failed:
            raise UserError(
                "\n".join(f"{run.name} failed: {self._last_words(run)}" for run in self.failed),
                "Call the same command again to try once more.",
            )

    def _fill(self) -> None:
        """Start a run in every free slot, passing over those that another comparison is working on."""
        free = set(range(len(self.environments))) - {active.slot for active in self.active}
        for run in list(self.pending):
            if not free:
                return
            claim = self._claim(run)
            if claim is None:
                continue
            self.pending.remove(run)
            if run.summary() is not None:  # another comparison has finished it meanwhile
                claim.__exit__(None, None, None)
                self.finished()
                continue
            self._start(run, free.pop(), claim)
        if self.pending and not self.active and not self.waiting_said:
            self.waiting_said = True
            self.say(f"waiting for {len(self.pending)} runs that another comparison is working on")

    def _claim(self, run: PlannedRun) -> RunLock | None:
        folder = self.plan.folder / "claims" / run.name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return RunLock(folder).__enter__()
        except UserError:
            return None

    def _start(self, run: PlannedRun, slot: int, claim: RunLock) -> None:
        log = self._log(run)
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "customized_grpo", *self._verb(run)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environments[slot]},
                pass_fds=[claim.descriptor],
                start_new_session=True,  # Ctrl-C reaches us alone, and we tell the runs
            )
        self.active.append(Active(run, slot, process, claim, time.monotonic()))

    def _verb(self, run: PlannedRun) -> list[str]:
        """Return the command that begins or continues a run."""
        path = run.folder.path
        if CheckpointStore(path / "checkpoints", run.config.checkpoint.keep).latest() is not None:
            return ["resume", str(path)]
        recipe = self.plan.folder / "recipes" / f"{run.name}.yaml"
        recipe.parent.mkdir(exist_ok=True)
        write_text(recipe, dump_config(run.config))
        overwrite = str(run.folder.is_run()).lower()  # killed before its first checkpoint
        return ["train", str(recipe), f"run.overwrite={overwrite}"]

    def _collect(self) -> None:
        for active in [active for active in self.active if active.process.poll() is not None]:
            self.active.remove(active)
            active.claim.__exit__(None, None, None)
            if active.run.summary() is None:
                self.failed.append(active.run)
                self.say(f"{active.run.name} failed, see {self._log(active.run)}")
                continue
            self.seconds.append(time.monotonic() - active.started)
            self.say(f"{active.run.name} finished in {self.seconds[-1]:.0f} s, {self._left()}")
            self.finished()

    def _left(self) -> str:
        count = len(self.pending) + len(self.active)
        mean = sum(self.seconds) / len(self.seconds)
        return f"{count} left, about {mean * count / len(self.environments) / 60:.0f} min"

    def _stop_all(self) -> None:
        """Tell every run to save and stop, and wait for it."""
        for active in self.active:
            active.process.terminate()
        for active in self.active:
            active.process.wait()
            active.claim.__exit__(None, None, None)

    def _log(self, run: PlannedRun) -> Path:
        return self.plan.folder / "logs" / f"{run.name}.log"

    def _last_words(self, run: PlannedRun) -> str:
        lines = self._log(run).read_text(errors="replace").strip().splitlines()
        return " ".join(lines[-LOG_LINES:])
