"""Evaluations of a run while it trains: when, against which base, what is written, and the alarms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from customized_grpo.engine.interrupts import StopFlag
from customized_grpo.evaluation.alarms import Alarm, TrainingHealth, check_alarms
from customized_grpo.evaluation.changes import monitor_record, train_gaps
from customized_grpo.evaluation.held_out import N_FIRST_IMAGES
from customized_grpo.evaluation.scores import HeldOutScores, read_scores, summary
from customized_grpo.reporting.closing import closing_lines
from customized_grpo.reporting.images import SampleRow, save_samples, start_samples
from customized_grpo.runs.folder import RunFolder
from customized_grpo.training.best import check_measure
from customized_grpo.training.log import RunLog
from customized_grpo.training.metrics import mean_health
from customized_grpo.training.parts import Parts
from customized_grpo.training.records import check_records, read_records, scores_file, set_aside
from customized_grpo.training.state import RunState
from customized_grpo.training.updater import Updater

HELD_OUT = "held_out.json"
"""What held-out rows share with training rows; the report says so."""


class Evaluator:
    """Measures the policy on held-out prompts and compares it with the base; idle if nothing is held out.

    Args:
        folder: The run's folder, for scores and images.
        parts: The run's parts.
        updater: Knows the adapter that the run is judged by.
        state: The run's counters; its history and health belong to the alarms.
        log: The run's log.
        stop: Checked before every batch.

    Attributes:
        base: Scores before the first iteration; None until they are measured.
        latest: Scores of the latest evaluation.
    """

    def __init__(
        self,
        folder: RunFolder,
        parts: Parts,
        updater: Updater,
        state: RunState,
        log: RunLog,
        stop: StopFlag,
    ) -> None:
        self.folder = folder
        self.parts = parts
        self.engine = parts.engine
        self.updater = updater
        self.state = state
        self.log = log
        self.stop = stop
        self.base: HeldOutScores | None = None
        self.latest: HeldOutScores | None = None
        self._history: list[dict[str, Any]] = []  # as in the checkpoint of a restored run

    def evaluate_base(self) -> None:
        """Measure the base once, before the first iteration; a resumed run has read it back.

        A resumed run whose measurement of the base is lost, or can no longer be compared with, measures the
        base again, with the adapter that training began with, or none.
        """
        if not self.parts.data.held_out:
            return
        self.engine.from_main(self._write_rows)
        # Read back by `restore`: the base does not change, so it is not drawn again.
        if self.base is not None:
            self.log.progress.evaluation({"kind": "eval", "iteration": 0, **self.base.metrics()})
            return
        if self.state.iteration == 0:
            self.evaluate()
            return
        # Resumed in the middle without the base's scores: the policy is trained by now.
        with self.parts.policy.start():
            scores, images = self._measure()
        self._keep(0, scores, images)
        self.log.write("eval", {**scores.metrics(), "iteration": 0, "rollouts": 0})
        self.log.event("evaluation", "the model with which training began was measured again")
        self.base = scores
        self.latest = scores
        self._rebuild_history()

    def _write_rows(self) -> None:
        rows = [
            SampleRow(example.prompt, example.references, example.subject, example.target)
            for example in self.parts.data.held_out[:N_FIRST_IMAGES]
        ]
        start_samples(self.folder.path / "samples", rows)
        self.folder.write_json(HELD_OUT, self.parts.data.overlap.to_json())

    @property
    def last_iteration(self) -> int:
        """Return the iteration of the latest evaluation; 0 for the base's."""
        return self.state.history[-1].iteration if self.state.history else 0

    def evaluate(self) -> list[Alarm]:
        """Measure the policy, keep scores and images, and return the alarms."""
        if not self.parts.data.held_out:
            return []
        # The average, where the recipe judges by it.
        with self.updater.result():
            scores, images = self._measure()
        # scores first, then the line: an evaluation counts by its line, see `records`
        self._keep(self.state.iteration, scores, images)
        # Of the iterations since the last evaluation.
        health = mean_health(self.state.health)
        line = self.log.write("eval", {**scores.metrics(), **train_gaps(scores, health.reward)})
        self.log.check()
        self.log.progress.evaluation(line)
        self.latest = scores
        if self.base is None:
            check_measure(self.parts.config.checkpoint.best, scores)
            self.base = scores
            return []
        self.state.health = []
        self.state.history.append(monitor_record(self.state.iteration, scores, self.base, health))
        alarms = check_alarms(self.state.history)
        for alarm in alarms:
            self.log.event("alarm", alarm.message, prefix=f"alarm ({alarm.name}): ", alarm=alarm.name)
        return alarms

    def report_result(self) -> dict[str, Any]:
        """Show the result on the terminal, alarms first, and return it as `scores.summary` does."""
        measured = summary(self.base, self.latest) if self.base and self.latest else {}
        alarms = [alarm.message for alarm in check_alarms(self.state.history)]
        for line in closing_lines(measured, alarms):
            self.log.progress.message(line)
        return measured

    def _measure(self) -> tuple[HeldOutScores, Tensor]:
        self.log.progress.phase("evaluate")
        evaluation = self.parts.evaluation
        return evaluation.evaluate(self.stop.batch_check(evaluation.n_batches))

    def _keep(self, iteration: int, scores: HeldOutScores, images: Tensor) -> None:
        """Write scores and images, to the disk itself: the checkpoint after them relies on them."""

        def write() -> None:
            self.folder.write_json(scores_file(iteration), scores.to_json(), durable=True)
            paths = save_samples(self.folder.path / "samples", iteration, images)
            self.log.images(paths, iteration)

        self.engine.from_main(write)

    def restore(
        self, history: Sequence[dict[str, Any]], *, is_comparable: bool, allowed: Sequence[str]
    ) -> list[str]:
        """Read the evaluations of a resumed run back from its folder.

        A checkpoint is saved before its iteration is evaluated. If that evaluation was finished as well, it
        counts; otherwise the loop begins with it.

        Args:
            history: From the checkpoint: iteration of each evaluation but the base's, and the health of
                training before it.
            is_comparable: Whether later evaluations can be compared with them. Otherwise they are set aside,
                and the base is measured again.
            allowed: Keys of records that may be missing.

        Returns:
            What is missing and allowed to be, one sentence each.

        Raises:
            UserError: Records are missing that cannot be made again.
        """
        iteration = self.state.iteration
        iterations = [entry["iteration"] for entry in history] if self.parts.data.held_out else []

        def read() -> Any:
            records = read_records(self.folder, iteration)
            missing = check_records(records, iterations, allowed)
            if not is_comparable:
                set_aside(self.folder, iteration)
                return {"evaluated": [], "missing": missing}
            return {"evaluated": list(records.evaluated), "missing": missing}

        received = self.engine.from_main(read)
        evaluated: list[int] = received["evaluated"]
        again = range(iteration + 1) if not is_comparable else (0, iteration)
        self.log.lost_evaluations = [number for number in again if number not in evaluated]
        # A line without scores, or scores without a line, is no evaluation.
        self._history = [entry for entry in history if entry["iteration"] in evaluated]
        # Evaluated after the checkpoint was written: its history lacks this one.
        if iteration in evaluated and iteration != 0 and iteration not in iterations:
            self._history.append({"iteration": iteration, **mean_health(self.state.health).to_json()})
            self.state.health = []
        if 0 in evaluated:  # otherwise nothing is held out, or the loop begins with the base
            self.base = self._read_scores(0)
            self.latest = self.base
            self._rebuild_history()
        return list(received["missing"])

    def _rebuild_history(self) -> None:
        """Compute the monitors of earlier evaluations again, from their scores and the base's."""
        assert self.base is not None
        # From the scores, because the monitors compare with the base of this session.
        for entry in self._history:
            iteration = entry["iteration"]
            self.latest = self._read_scores(iteration)
            health = TrainingHealth.from_json(entry)
            self.state.history.append(monitor_record(iteration, self.latest, self.base, health))

    def _read_scores(self, iteration: int) -> HeldOutScores:
        file = self.folder.path / scores_file(iteration)
        # from the main process, because the others may be on a host without this folder
        table = self.engine.from_main(lambda: read_scores(file).to_json())
        return HeldOutScores.from_json(table)
