"""Evaluations of a run while it trains: when, against which base, what is written, and the alarms."""

from __future__ import annotations

from typing import Any

from customized_grpo.engine.interrupts import StopFlag
from customized_grpo.evaluation.alarms import Alarm, MonitorRecord, TrainingHealth, check_alarms
from customized_grpo.evaluation.changes import monitor_record, train_gaps
from customized_grpo.evaluation.held_out import N_FIRST_IMAGES
from customized_grpo.evaluation.scores import HeldOutScores
from customized_grpo.reporting.images import SampleRow, save_samples, start_samples
from customized_grpo.reporting.metrics import read_metrics
from customized_grpo.runs.folder import RunFolder
from customized_grpo.training.log import RunLog
from customized_grpo.training.metrics import mean_health
from customized_grpo.training.parts import Parts
from customized_grpo.training.state import RunState
from customized_grpo.training.updater import Updater


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

    def evaluate_base(self) -> None:
        """Measure the base once, before the first iteration; a resumed run has read it back."""
        if not self.parts.data.held_out:
            return
        if self.base is not None:
            self.log.progress.evaluation({"kind": "eval", "iteration": 0, **self.base.metrics()})
            return
        if self.engine.is_main:
            rows = [
                SampleRow(example.prompt, example.references[0], example.subject, example.target)
                for example in self.parts.data.held_out[:N_FIRST_IMAGES]
            ]
            start_samples(self.folder.path / "samples", rows)
        self.evaluate()

    @property
    def last_iteration(self) -> int:
        """Return the iteration of the latest evaluation; 0 for the base's."""
        return self.state.history[-1].iteration if self.state.history else 0

    def evaluate(self) -> list[Alarm]:
        """Measure the policy, keep scores and images, and return the alarms."""
        if not self.parts.data.held_out:
            return []
        self.log.progress.phase("evaluate")
        evaluation = self.parts.evaluation
        with self.updater.result():
            scores, images = evaluation.evaluate(self.stop.batch_check(evaluation.n_batches))
        if self.engine.is_main:
            self.folder.write_json(_scores_file(self.state.iteration), scores.to_json())
            save_samples(self.folder.path / "samples", self.state.iteration, images)
        health = mean_health(self.state.health)
        line = self.log.write("eval", {**scores.metrics(), **train_gaps(scores, health.reward)})
        self.log.progress.evaluation(line)
        self.latest = scores
        if self.base is None:
            self.base = scores
            return []
        self.state.health = []
        self.state.history.append(monitor_record(self.state.iteration, scores, self.base, health))
        alarms = check_alarms(self.state.history)
        for alarm in alarms:
            self.log.event("alarm", alarm.message, prefix=f"alarm ({alarm.name}): ", alarm=alarm.name)
        return alarms

    def restore(self, history: list[dict[str, Any]]) -> None:
        """Read the evaluations of a resumed run back from its folder.

        A checkpoint is saved before its iteration is evaluated. If that evaluation was finished as well, it
        counts; otherwise the loop begins with it.

        Args:
            history: From the checkpoint: iteration of each evaluation but the base's, and the health of
                training before it.
        """
        evaluated = self.engine.from_main(self._evaluated_iterations)
        if 0 not in evaluated:  # nothing is held out, or the run was interrupted before
            return
        self.base = self._read_scores(0)
        self.latest = self.base
        for entry in history:
            self._restore_record(entry["iteration"], TrainingHealth.from_json(entry))
        iteration = self.state.iteration
        if iteration in evaluated and iteration not in [0, self.last_iteration]:
            health = mean_health(self.state.health)
            self.state.health = []
            self._restore_record(iteration, health)

    def _restore_record(self, iteration: int, health: TrainingHealth) -> None:
        assert self.base is not None
        self.latest = self._read_scores(iteration)
        record: MonitorRecord = monitor_record(iteration, self.latest, self.base, health)
        self.state.history.append(record)

    def _evaluated_iterations(self) -> list[int]:
        """Return the iterations whose evaluation was finished: their line is the last thing it writes."""
        lines = read_metrics(self.folder.path / "metrics.jsonl")
        return [int(line["iteration"] or 0) for line in lines if line["kind"] == "eval"]

    def _read_scores(self, iteration: int) -> HeldOutScores:
        table = self.engine.from_main(lambda: self.folder.read_json(_scores_file(iteration)))
        return HeldOutScores.from_json(table)


def _scores_file(iteration: int) -> str:
    return f"evaluations/iteration_{iteration:06d}.json"
