"""Which judges may say when qualities are decided, and how finely it is measured by default."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from customized_grpo.data.examples import Example
from customized_grpo.evaluation.judges import RewardJudges
from customized_grpo.rewards import FunctionReward
from customized_grpo.training.deciding import Branching, usable_judges

PHOTO = torch.zeros(3, 8, 8)


@pytest.mark.parametrize("by_target", [True, False])
@pytest.mark.parametrize("has_targets", [True, False])
def test_judges_that_compare_with_targets_are_left_out_where_a_training_row_has_none(
    by_target: bool, has_targets: bool
) -> None:
    judge = FunctionReward("mine", "prompt", lambda batch: torch.zeros(len(batch)))
    judges = RewardJudges([judge], ["mine"], [1.0], by_target=by_target)
    parts: Any = SimpleNamespace(data=SimpleNamespace(judges=judges))
    target = PHOTO if has_targets else None
    examples = [
        Example("with", "p", (PHOTO,), None, PHOTO, "s"),
        Example("b", "p", (PHOTO,), None, target, "s"),
    ]
    usable, notes = usable_judges(parts, examples)
    if by_target and not has_targets:
        assert usable is None and "which some training rows lack" in notes[0]
    else:
        assert usable is judges and notes == []


def test_weights_to_train_with_are_measured_more_finely_unless_told_otherwise() -> None:
    look, train = Branching(), Branching(calibrates="toybox")
    assert (look.n_prompts, look.n_points) == (8, 6)
    assert (train.n_prompts, train.n_points) == (32, 12)
    told = Branching(prompts=2, points=0, calibrates="toybox")
    assert (told.n_prompts, told.n_points) == (2, 0)
