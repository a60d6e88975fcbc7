"""The best checkpoint of a run by a held-out measure, kept beside the newest ones (`checkpoint.best`).

The larger mean of the measure is the better one. A run that is resumed finds it again among the checkpoints
that are there and the scores of their evaluations; `best.json` says it to the other verbs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from customized_grpo.errors import UserError, nearest
from customized_grpo.evaluation.scores import HeldOutScores, read_scores
from customized_grpo.runs.reading import BEST
from customized_grpo.training.records import scores_file

if TYPE_CHECKING:
    from customized_grpo.engine.engine import Engine
    from customized_grpo.runs.checkpoints import CheckpointStore
    from customized_grpo.runs.folder import RunFolder


def check_measure(measure: str | None, scores: HeldOutScores) -> None:
    """Refuse a measure that the evaluations of a run do not have.

    Raises:
        UserError: Names those that they have.
    """
    if measure is None or measure in scores.columns:
        return
    close = nearest(measure, scores.columns)
    raise UserError(
        f"checkpoint.best {measure!r} is no measure of this run's evaluations"
        + ("" if close is None else f"; did you mean {close}?"),
        hint=f"They measure {', '.join(sorted(scores.columns))}.",
    )


class BestCheckpoint:
    """Keeps the checkpoint whose evaluation had the best mean of a measure; idle without one.

    Args:
        measure: Name of a held-out metric, such as judge/identity; None for none.
        folder: The run's folder.
        store: Its checkpoints.
        engine: All processes decide alike; the main one reads and writes.

    Attributes:
        iteration: The best so far; None before there is one.
        value: Its mean.
    """

    def __init__(
        self, measure: str | None, folder: RunFolder, store: CheckpointStore, engine: Engine
    ) -> None:
        self.measure = measure
        self.folder = folder
        self.store = store
        self.engine = engine
        self.iteration: int | None = None
        self.value = math.nan

    def restore(self, base: HeldOutScores | None = None) -> None:
        """Find the best of the checkpoints that are there, those of a run that is resumed.

        Args:
            base: Scores of the run's first evaluation; None where it has none yet.

        Raises:
            UserError: They lack the measure, which may be another one than when the run began.
        """
        if self.measure is None:
            return
        if base is not None:
            check_measure(self.measure, base)
        best = self.engine.from_main(self._find)
        if best is not None:
            self._set(*best)
        self.engine.from_main(self._write)

    def offer(self, iteration: int, scores: HeldOutScores | None, save: Callable[[], None]) -> bool:
        """Keep an iteration's checkpoint if it is the best so far, and return whether it is.

        Args:
            iteration: Number of finished iterations.
            scores: Of the evaluation after it; None if there was none.
            save: Commits its checkpoint, unless it is there.
        """
        if self.measure is None or scores is None:
            return False
        value = scores.mean(self.measure)
        # Only a strictly better one: of equals the earlier, less trained one stays.
        if math.isnan(value) or not (self.iteration is None or value > self.value):
            return False
        # Saved before it is named: a kill between the two leaves the older best in force.
        save()
        self._set(iteration, value)
        self.engine.from_main(self._write)
        return True

    def _find(self) -> tuple[int, float] | None:
        assert self.measure is not None
        best: tuple[int, float] | None = None
        # Only checkpoints that are still there: an evaluation alone cannot be gone back to.
        for step in self.store.steps():
            file = self.folder.path / scores_file(step)
            if not file.is_file():
                continue
            scores = read_scores(file)
            value = scores.mean(self.measure) if self.measure in scores.columns else math.nan
            if not math.isnan(value) and (best is None or value > best[1]):
                best = (step, value)
        return best

    def _set(self, iteration: int, value: float) -> None:
        self.iteration = iteration
        self.value = value
        # The store deletes old checkpoints, but never this one.
        self.store.kept_step = iteration

    def _write(self) -> None:
        if self.iteration is None:
            (self.folder.path / BEST).unlink(missing_ok=True)
            return
        record = {"iteration": self.iteration, "measure": self.measure, "mean": self.value}
        self.folder.write_json(BEST, record, durable=True)
