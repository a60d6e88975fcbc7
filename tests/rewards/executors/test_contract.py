"""What every executor promises: the same scores, bit for bit, and the same errors, wherever a reward runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch

import serving
import tiny_rewards as tiny
from customized_grpo.config.executors import HttpExecution, InlineExecution, RayExecution, ThreadExecution
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards import RewardError, ScoringBatch, build_reward, score_all
from customized_grpo.rewards.executors import Executor, Scorer, build_scorer, in_8_bits

REWARDS = [
    RewardConfig(name="dino", path="toybox"),
    RewardConfig(name="clip_t", path="toybox", noise=0.1),
    RewardConfig(name="own_rewards:brightness"),
    RewardConfig(name="own_rewards:Moody"),
]
Executors = dict[str, Executor]


@pytest.fixture(
    scope="module", params=["inline", "thread", pytest.param("ray", marks=pytest.mark.slow), "http"]
)
def executors(request: pytest.FixtureRequest) -> Iterator[Executors]:
    """The rewards at one place, by name."""
    with ExitStack() as stack:
        if request.param == "inline":
            place: Any = InlineExecution(kind="inline")
        elif request.param == "thread":
            place = ThreadExecution(kind="thread")
        elif request.param == "ray":
            request.getfixturevalue("ray_cluster")
            place = RayExecution(kind="ray", env=request.getfixturevalue("worker_env"))
        else:
            service = stack.enter_context(serving.running(REWARDS))
            place = HttpExecution(kind="http", url=service.url, retries=1)
        placed = [config.model_copy(update={"executor": place}) for config in REWARDS]
        scorer = stack.enter_context(build_scorer(placed))
        yield {config.name: executor for config, executor in zip(REWARDS, scorer.rewards, strict=True)}


def moody(batch: ScoringBatch, **moods: str) -> ScoringBatch:
    """Give rows of a batch their mood, as in row_1="fails"."""
    meta = [{**row, "mood": moods.get(f"row_{number}", "")} for number, row in enumerate(batch.meta)]
    return dataclasses.replace(batch, meta=meta)


def test_scores_are_those_of_the_rewards_themselves_in_the_order_of_submission(executors: Executors) -> None:
    scorer = Scorer(list(executors.values()), ["stop"] * len(REWARDS))
    rewards = [build_reward(config) for config in REWARDS]
    batches = [
        moody(tiny.make_batch(4), row_0="nan", row_2="inf"),
        tiny.make_batch(2, 48, 80, references=2),
        moody(tiny.make_batch(3), row_1="-inf"),
    ]
    for batch in batches:
        scorer.submit(batch)
    collected = scorer.collect()
    expected = torch.cat([score_all(rewards, in_8_bits(batch)) for batch in batches])
    assert collected.dtype == torch.float32 and collected.shape == (9, 4)
    assert torch.equal(collected.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert collected.isnan().nonzero().tolist() == [[0, 3], [2, 3], [7, 3]]


def test_name_kind_and_fingerprint_are_the_rewards_own(executors: Executors) -> None:
    for config in REWARDS:
        reward, executor = build_reward(config), executors[config.name]
        assert (executor.name, executor.kind) == (reward.name, reward.kind)
        assert executor.fingerprint() == reward.fingerprint()


def test_what_the_user_can_mend_is_said_as_the_reward_says_it_and_never_dropped(executors: Executors) -> None:
    scorer = Scorer([executors["own_rewards:Moody"]], ["drop"])
    scorer.submit(moody(tiny.make_batch(2), row_1="refuses"))
    with pytest.raises(UserError, match=r"reward 'own': sample 1 \(row 'row-1'\) lacks something") as caught:
        scorer.collect()
    assert not isinstance(caught.value, RewardError) and caught.value.hint == "Give it."


@pytest.mark.parametrize("on_failure", ["stop", "drop"])
def test_a_failure_stops_and_names_reward_and_samples_or_drops_its_batch(
    on_failure: Any, executors: Executors
) -> None:
    scorer = Scorer([executors["own_rewards:Moody"]], [on_failure])
    good = tiny.make_batch(2)
    for batch in (good, moody(tiny.make_batch(3), row_1="fails"), good):
        scorer.submit(batch)
    said = r"reward 'own' failed on samples sample 0 \(row 'row-0'\) to sample 2 \(row 'row-2'\)"
    if on_failure == "stop":
        with pytest.raises(RewardError, match=said):
            scorer.collect()
    else:
        assert scorer.collect()[:, 0].isnan().tolist() == [False] * 2 + [True] * 3 + [False] * 2
        (message,) = scorer.take_dropped()
        assert re.match(said, message) and not scorer.take_dropped()
    assert scorer.score(good).isfinite().all()


@pytest.mark.parametrize("config", REWARDS[:2], ids=lambda config: config.name)
def test_a_score_does_not_depend_on_what_was_scored_before(config: RewardConfig) -> None:
    """Batches reach a service or an actor in any order, and a resumed run begins with empty caches."""
    batch = in_8_bits(tiny.make_batch(4))
    fresh = build_reward(config).score(batch)
    for samples in (1, 2, 3):
        reward = build_reward(config)
        reward.score(in_8_bits(tiny.make_batch(samples)))
        assert torch.equal(reward.score(batch), fresh)


def test_toybox_scores_at_the_precision_of_a_saved_image_are_those_of_training() -> None:
    """Rounding to 8 bits moves no score by more than what 1/255 of a mask's edge can do."""
    from customized_grpo.rollout.scoring import scoring_batch
    from customized_grpo.toybox.source import ToyBoxSource

    rows = [ToyBoxSource(4, 1, 0, "train")[index] for index in range(4)]
    targets = [row.target for row in rows if row.target is not None]
    batch = scoring_batch(torch.stack(targets), rows)
    reward = build_reward(REWARDS[0])
    assert torch.allclose(reward.score(in_8_bits(batch)), reward.score(batch), atol=2e-3)
