"""Rewards that say nothing and updates that are not finite: counted, told, and in the end a stop."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from customized_grpo.config import Config
from customized_grpo.errors import UserError
from customized_grpo.rewards.base import FunctionReward
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.training import trainer
from customized_grpo.training.drawing import Drawing
from customized_grpo.training.losses import UpdateLoss
from customized_grpo.training.signal import LearningSignal
from customized_grpo.training.waste import find_waste
from same_run import assert_same_run, events, lines, steps

pytestmark = pytest.mark.slow

Recipe = Callable[..., Config]
SMALL = [
    "train.prompts_per_iteration=2",
    "train.group_size=2",
    "rollout.steps=3",
    "rollout.batch_size=4",
    "train.micro_batch_size=4",
    "data.held_out_subjects=2",
    "checkpoint.keep=9",
]
NAN = math.nan


def rewards_say(patch: pytest.MonkeyPatch, says: Callable[[int], list[list[float]]]) -> None:
    """Let the rewards of an iteration be what `says` returns for it: [N, K], identity first."""

    def score(self: Drawing) -> torch.Tensor:
        self.scorer.collect()
        return torch.tensor(says(self.state.iteration + 1))

    patch.setattr(Drawing, "score", score)


GOOD = [[0.1, 0.4], [0.2, 0.3], [0.5, 0.2], [0.3, 0.1]]
CONSTANT = [[0.5, 0.25]] * 4
UNSCORED = [[NAN, 0.4], [NAN, 0.3], [NAN, 0.2], [0.3, 0.1]]


# What is a wasted iteration


def find(
    recipe: Recipe, scores: list[list[float]], share: float = 0.5, grad_norms: Sequence[float] = (0.1,)
) -> Any:
    config = recipe(*SMALL)
    rewards = [FunctionReward(kind, kind, torch.zeros_like) for kind in ("identity", "prompt")]  # type: ignore[arg-type]
    table = torch.tensor(scores)
    signal = LearningSignal.from_scores(config, rewards, table, 0)
    return find_waste(["dino", "clip_t"], table, signal, grad_norms, share)


@pytest.mark.parametrize("scores", [GOOD, [[0.1, 0.4], [0.2, 0.4], [0.5, 0.2], [0.5, 0.2]]])
def test_one_group_told_apart_by_one_reward_is_enough(recipe: Recipe, scores: list[list[float]]) -> None:
    assert find(recipe, scores) is None


def test_constant_groups_are_named_with_the_means_of_the_rewards(recipe: Recipe) -> None:
    """Though the groups differ from each other: samples are compared within a group."""
    waste = find(recipe, [[0.1, 0.4], [0.1, 0.4], [0.5, 0.2], [0.5, 0.2]])
    assert waste is not None
    assert "no reward tells the samples of any group apart (means: dino 0.3, clip_t 0.3)" in waste.message
    assert "rollout.eta" in waste.advice


@pytest.mark.parametrize(("share", "wasted"), [(0.5, True), (0.74, True), (0.75, False), (1.0, False)])
def test_more_than_the_share_unscored_is_named_by_reward(recipe: Recipe, share: float, wasted: bool) -> None:
    """One scored sample in a group has nothing to be compared with; the second group still has both."""
    scores = [[NAN, 0.4], [0.2, NAN], [NAN, NAN], [0.3, 0.1]]
    scores_with_a_signal = [[NAN, 0.4], [0.2, NAN], [0.4, 0.3], [0.3, 0.1]]
    assert find(recipe, scores_with_a_signal) is None
    waste = find(recipe, scores, share)
    assert waste is not None
    counted = "3 of 4 samples could not be scored (dino lacks 2, clip_t lacks 2)"
    assert (counted in waste.message) is wasted
    assert ("train.max_unscored_share" in waste.advice) is wasted


@pytest.mark.parametrize(
    ("grad_norms", "wasted"), [([0.0, 0.0], True), ([0.0, 1e-30], False), ([math.nan], False), ([], False)]
)
def test_advantages_of_which_no_gradient_is_left_are_told(
    recipe: Recipe, grad_norms: list[float], wasted: bool
) -> None:
    waste = find(recipe, GOOD, grad_norms=grad_norms)
    assert (waste is not None) is wasted
    assert waste is None or "every gradient of the iteration was 0" in waste.message


# In a run


@pytest.mark.parametrize(
    "setting", ["advantage={name: cme, options: {base: 0.0, bonus: 0.0}}", "model.lora.alpha=1.0e-60"]
)
def test_a_rule_or_a_setting_that_leaves_nothing_to_learn_stops_the_run(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    rewards_say(monkeypatch, lambda iteration: GOOD)
    run = tmp_path / "run"
    settings = [*SMALL, "train.max_wasted_iterations=1", f"run.dir={run}", setting]
    with pytest.raises(UserError, match="stopped after 2 wasted iterations in a row: .*gradient.* was 0"):
        trainer.train(recipe(*settings, "train.iterations=9"))
    assert len(events(run, "wasted")) == 1


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (CONSTANT, "no reward tells the samples"),
        (UNSCORED, "3 of 4 samples could not be scored (dino lacks 3)"),
    ],
)
def test_too_many_wasted_iterations_stop_the_run_with_advice_and_resume_goes_on_counting(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, scores: list[list[float]], words: str
) -> None:
    rewards_say(monkeypatch, lambda iteration: GOOD if iteration in (1, 3) else scores)
    run = tmp_path / "run"
    settings = [*SMALL, "train.iterations=9", "train.max_wasted_iterations=2", f"run.dir={run}"]
    with pytest.raises(UserError, match="stopped after 3 wasted iterations in a row") as stopped:
        trainer.train(recipe(*settings, "checkpoint.every=9"))
    assert words in stopped.value.message
    assert stopped.value.hint is not None and f"cgrpo resume {run}" in stopped.value.hint
    # one warning for each row of them, and the second row begins anew after the good iteration 3
    assert [event["iteration"] for event in events(run, "wasted")] == [2, 4]
    assert steps(run) == [6]
    with pytest.raises(UserError, match="stopped after 4 wasted iterations"):
        trainer.resume(run)
    assert steps(run)[-1] == 7
    rewards_say(monkeypatch, lambda iteration: GOOD)
    assert trainer.resume(run) == 0
    assert CheckpointStore(run / "checkpoints", 0).load(9).state["wasted_in_a_row"] == 0


def test_the_limits_may_be_raised_on_resume(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards_say(monkeypatch, lambda iteration: UNSCORED)
    run = tmp_path / "run"
    with pytest.raises(UserError, match="wasted"):
        trainer.train(recipe(*SMALL, "train.iterations=3", "train.max_wasted_iterations=1", f"run.dir={run}"))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("max_unscored_share: 0.5", "max_unscored_share: 1.0"))
    rewards_say(monkeypatch, lambda iteration: [[NAN, 0.4], [NAN, 0.3], *GOOD[2:]])
    assert trainer.resume(run) == 0


def test_constant_groups_move_nothing_and_are_counted(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards_say(monkeypatch, lambda iteration: CONSTANT)
    run = tmp_path / "run"
    settings = [*SMALL, "train.iterations=2", "train.weight_decay=0.0", f"run.dir={run}"]
    assert trainer.train(recipe(*settings)) == 0
    first, second = (CheckpointStore(run / "checkpoints", 0).load(step).tensors["adapter"] for step in (1, 2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    trained = [line for line in lines(run) if line["kind"] == "train"]
    assert [line["health/zero_std_groups"] for line in trained] == [1.0, 1.0]
    assert [line["policy/grad_norm"] for line in trained] == [0.0, 0.0]


# Updates that are not finite


def test_a_left_out_update_names_its_prompts_and_the_run_goes_on(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = UpdateLoss.terms
    asked: list[list[str]] = []
    collect = Drawing.collect

    def remember(self: Drawing, examples: Any, *arguments: Any) -> Any:
        asked.append([example.id for example in examples])
        return collect(self, examples, *arguments)

    def spoiled(self: UpdateLoss, *args: Any) -> Any:
        for term in terms(self, *args):
            bad = len(asked) == 2 and args[-1] == 1  # the second update of the second iteration
            yield dataclasses.replace(term, loss=term.loss * math.inf) if bad else term

    monkeypatch.setattr(Drawing, "collect", remember)
    monkeypatch.setattr(UpdateLoss, "terms", spoiled)
    run = tmp_path / "run"
    settings = ["train.iterations=2", "train.updates_per_iteration=2", f"run.dir={run}"]
    assert trainer.train(recipe(*SMALL, *settings)) == 0
    (event,) = events(run, "skipped")
    assert event["iteration"] == 2
    assert str(event["message"]).endswith(f"its prompts: {asked[1][1]}")
    trained = [line for line in lines(run) if line["kind"] == "train"]
    assert [line["health/skipped_updates"] for line in trained] == [0, 1]
    json.dumps(event, allow_nan=False)
    again = tmp_path / "again"
    asked.clear()
    assert trainer.train(recipe(*SMALL, *settings[:-1], f"run.dir={again}")) == 0
    assert_same_run(again, run)
