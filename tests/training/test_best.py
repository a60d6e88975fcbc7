"""The best checkpoint by a held-out measure stays beside the newest ones, and is found again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from customized_grpo.engine.engine import Engine
from customized_grpo.errors import UserError
from customized_grpo.evaluation.scores import HeldOutScores
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.runs.folder import RunFolder
from customized_grpo.runs.reading import run_checkpoint
from customized_grpo.training.best import BestCheckpoint, check_measure
from customized_grpo.training.records import scores_file

MEASURE = "judge/identity"


class Alone:
    """One process."""

    def from_main(self, work: Any) -> Any:
        return work()


class Run:
    """A run folder that is trained and evaluated in a manner of speaking."""

    def __init__(self, path: Path, measure: str | None = MEASURE) -> None:
        self.folder = RunFolder(path)
        self.store = CheckpointStore(path / "checkpoints", keep=1)
        self.best = BestCheckpoint(measure, self.folder, self.store, cast(Engine, Alone()))

    def save(self, step: int) -> None:
        if self.store.latest() != step:
            self.store.save(step, {"adapter": {"a": torch.tensor([float(step)])}}, {"iteration": step})

    def evaluate(self, step: int, value: float) -> bool:
        scores = HeldOutScores({MEASURE: [value - 1, value + 1]}, ["a/0", "b/0"], ["a", "b"])
        self.folder.write_json(scores_file(step), scores.to_json(), durable=True)
        return self.best.offer(step, scores, lambda: self.save(step))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_it_outlives_newer_ones_until_a_better_one(run: Run, tmp_path: Path) -> None:
    assert run.evaluate(1, 0.5)
    assert not run.evaluate(2, 0.5)  # no better
    for step in (2, 3):
        run.save(step)
    assert run.store.steps() == [1, 3]
    assert run_checkpoint(tmp_path, "best").step == 1
    assert run_checkpoint(tmp_path).step == 3
    assert run.evaluate(4, 0.7)
    run.save(5)
    assert run.store.steps() == [4, 5]
    assert run_checkpoint(tmp_path, "best").step == 4


def test_what_cannot_be_measured_is_never_the_best(run: Run) -> None:
    assert not run.evaluate(1, math.nan)
    assert not run.best.offer(1, None, lambda: run.save(1))
    assert run.store.steps() == []


def test_a_resumed_run_finds_it_among_the_checkpoints_that_are_there(run: Run, tmp_path: Path) -> None:
    run.evaluate(1, 0.5)
    run.evaluate(2, 0.9)
    run.save(3)
    run.store.sweep()
    again = Run(tmp_path)
    again.best.restore()
    assert (again.best.iteration, again.best.value) == (2, pytest.approx(0.9))
    again.store.sweep()
    assert again.store.steps() == [2, 3]
    again.store.rewind(2)  # back to it: still the best
    (tmp_path / scores_file(2)).unlink()  # unless its evaluation counts no more
    last = Run(tmp_path)
    last.best.restore()
    assert last.best.iteration is None
    with pytest.raises(UserError, match="knows no best checkpoint"):
        run_checkpoint(tmp_path, "best")


def test_without_a_measure_nothing_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, measure=None)
    assert not run.evaluate(1, 0.5)
    run.best.restore()
    assert not (tmp_path / "best.json").exists()


def test_a_measure_that_evaluations_lack_is_refused_with_those_they_have() -> None:
    scores = HeldOutScores({MEASURE: [0.0], "reward/prompt": [0.0]}, ["a/0"], ["a"])
    check_measure(MEASURE, scores)
    check_measure(None, scores)
    with pytest.raises(UserError, match="did you mean judge/identity") as refused:
        check_measure("judge/identiy", scores)
    assert "reward/prompt" in str(refused.value.hint)
