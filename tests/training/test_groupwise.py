"""Rewards that compare the images of a prompt, in a whole run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from customized_grpo import extensions
from customized_grpo.config import Config
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.evaluation.judges import build_judges
from customized_grpo.rewards import FunctionReward, ScoringBatch
from customized_grpo.rewards.executors import InlineExecutor, Scorer
from customized_grpo.training import trainer
from customized_grpo.training.parts import check_whole_groups

Recipe = Callable[..., Config]
GROUPS: list[list[str]] = []


def _ranks(batch: ScoringBatch) -> torch.Tensor:
    GROUPS.append([row["id"] for row in batch.meta])
    ranks = batch.images.mean(dim=(1, 2, 3)).argsort().argsort()
    return ranks.float().cpu() / (len(batch) - 1)


ranked = FunctionReward("ranked", "quality", _ranks, groupwise=True)


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(extensions.TRUST, __name__)


@pytest.mark.slow
def test_a_run_ranks_the_images_of_each_prompt(tmp_path: Path, recipe: Recipe, trusted: None) -> None:
    config = recipe(
        f"run.dir={tmp_path / 'run'}",
        f"rewards=[{{name: dino, path: toybox}}, {{name: '{__name__}:ranked'}}]",
        "rollout.batch_size=2",  # groups of three, which the batches cut
        "evaluation.samples_per_prompt=2",
        "evaluation.batch_size=2",
    )
    GROUPS.clear()
    assert trainer.train(config) == 0
    assert {len(group) for group in GROUPS} == {2, 3}
    assert all(len(set(group)) == 1 for group in GROUPS)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    means = [line["score/ranked"] for line in lines if "score/ranked" in line]
    assert means and all(mean == pytest.approx(0.5) for mean in means)


def evaluation(config: Config, **settings: Any) -> Any:
    return config.evaluation.model_copy(update=settings)


def test_an_evaluation_must_show_the_images_of_a_prompt_together(recipe: Recipe) -> None:
    config = recipe()
    scorer = Scorer([InlineExecutor(ranked)], ["stop"])
    with pytest.raises(UserError, match="ranked compares .*samples_per_prompt=1 draws one"):
        check_whole_groups(evaluation(config, samples_per_prompt=1), scorer)
    with pytest.raises(UserError, match="batch_size=8 does not hold whole prompts") as error:
        check_whole_groups(evaluation(config, samples_per_prompt=3, batch_size=8), scorer)
    assert error.value.hint == "Make evaluation.batch_size a multiple of 3."
    check_whole_groups(evaluation(config, samples_per_prompt=3, batch_size=9), scorer)
    alone = Scorer([InlineExecutor(replace(ranked, groupwise=False))], ["stop"])
    check_whole_groups(evaluation(config, samples_per_prompt=1), alone)


def test_a_judge_scores_images_one_by_one(trusted: None) -> None:
    with pytest.raises(UserError, match="evaluation.judges: ranked compares the images of a group"):
        build_judges([RewardConfig(name=f"{__name__}:ranked")], [], torch.device("cpu"))
