"""Executes the runs of a plan: several processes side by side, each a `cgrpo train` or `cgrpo resume`.

A finished run is never done again, an interrupted one is resumed exactly, and a run that another comparison
on the same folder is working on is left to it: a claim is a kernel lock that the training process inherits,
so it outlives a comparison that was killed and ends with the training.
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
from customized_grpo.links import open_in_place
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.runs.folder import is_run_folder
from customized_grpo.runs.lock import Held, RunLock

POLL_S = 0.2
"""Seconds between looks at the processes."""

RETRY_S = 2.0
"""Seconds between looks at runs that another comparison has claimed."""

LOG_LINES = 3
"""Last lines of a failed run's log that the message repeats."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass
class Active:
    """A run in training.

    Attributes:
        run: Arm and seed.
        slot: Index of its environment.
        process: Its training process.
        claim: The lock that keeps other comparisons away from it.
        started: Monotonic time of its start, in seconds.
    """

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
        # The user may have allowed some GPUs only; each slot must stay among them.
        allowed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        devices = allowed or [str(index) for index in range(gpus)]
        return [{"CUDA_VISIBLE_DEVICES": devices[job % len(devices)]} for job in range(jobs)]
    return [dict.fromkeys(THREAD_VARIABLES, str(threads)) for _ in range(jobs)]


class Runner:
    """Trains the unfinished runs of a plan.

    Args:
        plan: The plan.
        environments: One per slot, see `slots`.
        on_message: Called with a line for people.
        on_finished: Called after every finished run.
    """

    def __init__(
        self,
        plan: Plan,
        environments: Sequence[Mapping[str, str]],
        on_message: Callable[[str], None],
        on_finished: Callable[[], object],
    ) -> None:
        self.plan = plan
        self.environments = environments
        self.on_message = on_message
        self.on_finished = on_finished
        self.pending: list[PlannedRun] = []
        self.active: list[Active] = []
        self.failed: list[PlannedRun] = []
        self.seconds: list[float] = []
        self.waiting_announced = False

    def run(self, stop: StopFlag) -> None:
        """Train until all is finished.

        Raises:
            Interrupted: A signal came; the runs have saved and stopped.
            UserError: Runs failed; the others are finished.
        """
        runs = self.plan.runs()
        self.pending = [run for run in runs if run.summary() is None]
        finished = len(runs) - len(self.pending)
        self.on_message(f"{len(runs)} runs, {finished} finished, {len(self.environments)} at a time")
        try:
            while self.pending or self.active:
                stop.check()
                self._fill()
                # with no run of its own it waits for another comparison, which takes minutes
                time.sleep(POLL_S if self.active else RETRY_S)
                self._collect()
        finally:
            self._stop_all()  # none is left unless something went wrong
        if self.failed:
            raise UserError(
                "\n".join(f"{run.name} failed: {self._last_words(run)}" for run in self.failed),
                hint="Call the same command again to try once more.",
            )

    def _fill(self) -> None:
        """Start a run in every free slot, passing over those that another comparison is working on."""
        free = set(range(len(self.environments))) - {active.slot for active in self.active}
        # a copy, because runs are taken out of the list on the way
        for run in list(self.pending):
            if not free:
                return
            claim = self._claim(run)
            if claim is None:
                continue
            self.pending.remove(run)
            # Looked at again under the lock, which nobody else can hold now.
            if run.summary() is not None:  # another comparison has finished it since we looked
                claim.release()
                self.on_finished()
                continue
            try:
                self._start(run, free.pop(), claim)
            except BaseException:
                claim.release()  # nothing runs that could hold it
                raise
        if self.pending and not self.active and not self.waiting_announced:
            self.waiting_announced = True
            self.on_message(f"waiting for {len(self.pending)} runs that another comparison is working on")

    def _claim(self, run: PlannedRun) -> RunLock | None:
        """Return the lock of a run; None while another process holds it."""
        folder = self.plan.folder / "claims" / run.name
        folder.mkdir(parents=True, exist_ok=True)
        claim = RunLock(folder)
        try:
            claim.acquire()
        except Held:
            return None
        return claim

    def _start(self, run: PlannedRun, slot: int, claim: RunLock) -> None:
        log = self._log(run)
        log.parent.mkdir(exist_ok=True)
        with os.fdopen(open_in_place(log, os.O_WRONLY | os.O_APPEND), "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "customized_grpo", *self._verb(run)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environments[slot]},
                # The child holds the lock too: it stays taken if this process is killed.
                pass_fds=[claim.descriptor],
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the runs
            )
        self.active.append(Active(run, slot, process, claim, time.monotonic()))

    def _verb(self, run: PlannedRun) -> list[str]:
        """Return the command that begins or continues a run."""
        path = run.folder.path
        store = CheckpointStore(path / "checkpoints", run.config.checkpoint.keep)
        # A folder without a checkpoint has nothing to go on from.
        if is_run_folder(path) and store.latest() is not None:
            return ["resume", str(path)]
        recipe = self.plan.folder / "recipes" / f"{run.name}.yaml"
        recipe.parent.mkdir(exist_ok=True)
        write_text(recipe, dump_config(run.config))
        overwrite = str(is_run_folder(path)).lower()  # killed before its first checkpoint
        return ["train", str(recipe), f"run.overwrite={overwrite}"]

    def _collect(self) -> None:
        """Take note of the runs whose process has ended."""
        ended = [active for active in self.active if active.process.poll() is not None]
        for active in ended:
            self.active.remove(active)
            active.claim.release()
            if active.run.summary() is None:
                self.failed.append(active.run)
                self.on_message(f"{active.run.name} failed, see {self._log(active.run)}")
                continue
            self.seconds.append(time.monotonic() - active.started)
            self.on_message(f"{active.run.name} finished in {self.seconds[-1]:.0f} s, {self._left()}")
            self.on_finished()

    def _left(self) -> str:
        """Return how many runs are left and for how long, by the mean time of those done."""
        count = len(self.pending) + len(self.active)
        # Slots work side by side.
        seconds = sum(self.seconds) / len(self.seconds) * count / len(self.environments)
        return f"{count} left, about {seconds / 60:.0f} min"

    def _stop_all(self) -> None:
        """Make every run save and stop, and wait for it."""
        # all first, and then the waiting: each takes a while to save
        for active in self.active:
            active.process.terminate()
        for active in self.active:
            active.process.wait()
            active.claim.release()

    def _log(self, run: PlannedRun) -> Path:
        return self.plan.folder / "logs" / f"{run.name}.log"

    def _last_words(self, run: PlannedRun) -> str:
        lines = self._log(run).read_text(errors="replace").strip().splitlines()
        return " ".join(lines[-LOG_LINES:])
