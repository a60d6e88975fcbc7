"""What a run writes while it trains: metrics.jsonl, the trackers and the terminal.

Only the main process writes; in the others the same calls do nothing, so that the loop has one path.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from customized_grpo.algorithms.schedules import prompt_weights
from customized_grpo.config import Config
from customized_grpo.engine.engine import Engine
from customized_grpo.errors import UserError
from customized_grpo.reporting.metrics import MetricsWriter
from customized_grpo.reporting.progress import Progress, progress
from customized_grpo.reporting.trackers import Trackers, check_trackers
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.runs.folder import RunFolder
from customized_grpo.training.state import RunState


def check_start(config: Config) -> None:
    """Refuse a new run that could not write what it should, before anything is loaded; changes nothing.

    Raises:
        UserError: A tracker is not installed, or run.dir holds something that may not be overwritten.
    """
    check_trackers(config.trackers)
    RunFolder.check_free(config)


def check_resumable(config: Config) -> None:
    """Refuse a run that cannot go on, before anything is loaded.

    Raises:
        UserError: A tracker is not installed, or there is no checkpoint.
    """
    check_trackers(config.trackers)
    if CheckpointStore(config.run.dir / "checkpoints", config.checkpoint.keep).latest() is None:
        raise UserError(
            f"{config.run.dir} has no complete checkpoint to resume from",
            hint="Start again with `cgrpo train` and run.overwrite=true.",
        )


class RunLog:
    """The log of a run.

    Args:
        config: The recipe.
        folder: The run's folder.
        state: The run's counters, which every line holds.
        engine: Knows which process writes, and tells the others when the disk refuses.

    Attributes:
        progress: The terminal; set while the log is open.
        lost_evaluations: Iterations of a resumed run whose evaluation is made again: their lines are removed.
    """

    progress: Progress

    def __init__(self, config: Config, folder: RunFolder, state: RunState, engine: Engine) -> None:
        self.config = config
        self.folder = folder
        self.state = state
        self.engine = engine
        self.lost_evaluations: Collection[int] = ()
        self._metrics: MetricsWriter | None = None
        self._failure: OSError | None = None
        self._started = time.monotonic()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Write inside the block; lines after the iteration at which the run goes on are removed first."""
        total = self.config.train.iterations
        done = self.state.iteration
        # a resumed run counts on from the seconds of its earlier sessions
        self._started = time.monotonic() - self.state.seconds
        quiet = not self.engine.is_main
        with progress(total, done, quiet=quiet) as self.progress, ExitStack() as stack:
            self.engine.from_main(lambda: self._start(stack))
            yield

    def _start(self, stack: ExitStack) -> None:
        # for reports, which may not import the code of a foreign schedule
        weights = prompt_weights(self.config.schedule.build(), self.config.rollout.steps)
        self.folder.write_json("schedule.json", {"prompt_weights": weights.tolist()})
        recipe = self.config.model_dump(mode="json")
        trackers = stack.enter_context(closing(Trackers(self.config.trackers, self.folder.path, recipe)))
        metrics = MetricsWriter.open(
            self.folder.path / "metrics.jsonl",
            self.state.iteration,
            trackers,
            lost_evaluations=self.lost_evaluations,
        )
        self._metrics = stack.enter_context(metrics)

    def check(self) -> None:
        """Raise what the disk said of a line since the last check, in all processes: each must call this.

        Lines are written in the main process alone, at any place. An error that it raised there would leave
        the others waiting for it in their next exchange.
        """
        self.engine.from_main(self._raise_failure)

    def sync(self) -> None:
        """Have every line on the disk itself, before a checkpoint is saved that relies on them."""
        self.engine.from_main(self._sync)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _sync(self) -> None:
        self._raise_failure()
        if self._metrics is not None:
            self._metrics.sync()

    @property
    def seconds(self) -> float:
        """Return the seconds spent so far, over all sessions."""
        return time.monotonic() - self._started

    def write(self, kind: str, values: dict[str, Any]) -> dict[str, Any]:
        """Append one line to metrics.jsonl and return it."""
        line = {
            "kind": kind,
            "iteration": self.state.iteration,
            "rollouts": self.state.rollouts,
            "wall_s": round(self.seconds, 3),
            **values,
        }
        # nothing after the first refusal: a line that fits again would hide the one that is missing
        if self._metrics is not None and self._failure is None:
            try:
                self._metrics.write(line)
            except OSError as error:
                self._failure = error
        return line

    def images(self, paths: Sequence[Path], iteration: int) -> None:
        """Show the trackers the images of an evaluation; the run folder has them already."""
        if self._metrics is not None:
            self._metrics.images(paths, iteration)

    def event(
        self, name: str, message: str, *, prefix: str = "", iteration: int | None = None, **values: str
    ) -> None:
        """Append an event to metrics.jsonl and show it on the terminal.

        Args:
            name: Kind of event, for example "alarm".
            message: What happened.
            prefix: Words before the message on the terminal.
            iteration: The iteration it is about; None: the number of finished iterations.
            **values: What else the line of metrics.jsonl holds.
        """
        line: dict[str, Any] = {"event": name, "message": message, **values}
        if iteration is not None:
            line["iteration"] = iteration
        self.write("event", line)
        self.progress.message(f"{prefix}{message}")

    def failures(self, messages: Sequence[str]) -> None:
        """Append why rewards have not scored; each process gives its own messages."""
        for of_process in self.engine.gather_json(list(messages)):
            for message in of_process:
                self.event("reward failed", message, prefix="scores are missing: ")
