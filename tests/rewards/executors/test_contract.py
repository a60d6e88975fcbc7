"""What every executor promises: the same scores, bit for bit, and the same errors, wherever a reward runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import pytest
import torch

from customized_grpo.config.executors import HttpExecution, InlineExecution, RayExecution, ThreadExecution
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards import RewardError, ScoringBatch, build_reward, score_all
from customized_grpo.rewards.executors import Scorer, build_scorer, in_8_bits

PLACES = ["inline", "thread", "ray", "http"]
REWARDS = [
    RewardConfig(name="dino", path="toybox"),
    RewardConfig(name="clip_t", path="toybox", noise=0.1),
    RewardConfig(name="own_rewards:brightness"),
    RewardConfig(name="own_rewards:Gaps"),
]
FAILING = [RewardConfig(name="own_rewards:Fails"), RewardConfig(name="own_rewards:Picky")]
MakeScorer = Callable[..., Scorer]


@pytest.fixture(scope="module", params=PLACES)
def make(
    request: pytest.FixtureRequest, serving: ModuleType, own_rewards: ModuleType
) -> Iterator[MakeScorer]:
    """Build scorers whose rewards run at one place."""
    with ExitStack() as stack:
        if request.param == "inline":
            place: Any = InlineExecution(kind="inline")
        elif request.param == "thread":
            place = ThreadExecution(kind="thread")
        elif request.param == "ray":
            request.getfixturevalue("ray_cluster")
            place = RayExecution(kind="ray", env=request.getfixturevalue("worker_env"))
        else:
            service = stack.enter_context(serving.running([*REWARDS, *FAILING]))
            place = HttpExecution(kind="http", url=service.url, retries=1)

        def build(*configs: RewardConfig) -> Scorer:
            scorer = build_scorer([config.model_copy(update={"executor": place}) for config in configs])
            return stack.enter_context(scorer)

        yield build


@pytest.fixture(scope="module")
def scorers(make: MakeScorer) -> dict[str, Scorer]:
    """One scorer for each reward: Ray has but two cores here."""
    return {}


def scorer_of(config: RewardConfig, make: MakeScorer, scorers: dict[str, Scorer]) -> Scorer:
    for name in [name for name in scorers if name != config.name]:
        scorers.pop(name).close()
    if config.name not in scorers:
        scorers[config.name] = make(config)
    return scorers[config.name]


@pytest.mark.parametrize("config", REWARDS, ids=lambda config: config.name)
class TestScores:
    def test_they_are_those_of_the_reward_itself_in_the_order_of_submission(
        self, config: RewardConfig, make: MakeScorer, scorers: dict[str, Scorer], tiny: ModuleType
    ) -> None:
        reward, scorer = build_reward(config), scorer_of(config, make, scorers)
        batches = [tiny.make_batch(4), tiny.make_batch(2, 48, 80, references=2), tiny.make_batch(3)]
        for batch in batches:
            scorer.submit(batch)
        collected = scorer.collect()
        expected = torch.cat([score_all([reward], in_8_bits(batch)) for batch in batches])
        assert collected.dtype == torch.float32 and collected.shape == (9, 1)
        assert torch.equal(collected.nan_to_num(7.0), expected.nan_to_num(7.0))
        assert collected.isnan().sum() == (6 if config.name == "own_rewards:Gaps" else 0)

    def test_name_kind_and_fingerprint_are_the_rewards_own(
        self, config: RewardConfig, make: MakeScorer, scorers: dict[str, Scorer]
    ) -> None:
        reward, scorer = build_reward(config), scorer_of(config, make, scorers)
        assert [(r.name, r.kind) for r in scorer.rewards] == [(reward.name, reward.kind)]
        assert scorer.fingerprints() == [reward.fingerprint()]


def without_masks(batch: ScoringBatch) -> ScoringBatch:
    return dataclasses.replace(batch, reference_masks=None)


def test_what_the_user_can_mend_is_said_as_the_reward_says_it(make: MakeScorer, tiny: ModuleType) -> None:
    scorer = make(FAILING[1].model_copy(update={"on_failure": "drop"}))
    scorer.submit(tiny.make_batch(2))
    with pytest.raises(UserError, match=r"reward 'own': sample 0 \(row 'row-0'\) lacks something") as caught:
        scorer.collect()
    assert not isinstance(caught.value, RewardError) and caught.value.hint == "Give it."
    scorer.close()


@pytest.mark.parametrize("on_failure", ["stop", "drop"])
def test_a_failure_stops_and_names_reward_and_samples_or_drops_its_batch(
    on_failure: str, make: MakeScorer, tiny: ModuleType
) -> None:
    scorer = make(FAILING[0].model_copy(update={"on_failure": on_failure}))
    good, bad = tiny.make_batch(2), tiny.make_batch(3)
    bad.meta[1]["fail"] = True
    for batch in (good, bad, good):
        scorer.submit(batch)
    said = r"reward 'own' failed on samples sample 0 \(row 'row-0'\) to sample 2 \(row 'row-2'\)"
    if on_failure == "stop":
        with pytest.raises(RewardError, match=said):
            scorer.collect()
    else:
        assert scorer.collect()[:, 0].isnan().tolist() == [False] * 2 + [True] * 3 + [False] * 2
        (message,) = scorer.take_dropped()
        assert message.startswith("reward 'own' failed on samples sample 0") and not scorer.take_dropped()
    assert scorer.score(good).isfinite().all()
    scorer.close()
    scorer.close()


def test_toybox_scores_at_the_precision_of_a_saved_picture_are_those_of_training(tiny: ModuleType) -> None:
    """Rounding to 8 bits moves no score by more than what 1/255 of a mask's edge can do."""
    from customized_grpo.evaluation.held_out import scoring_batch
    from customized_grpo.toybox.source import ToyBoxSource

    rows = [ToyBoxSource(4, 1, 0, "train")[index] for index in range(4)]
    targets = [row.target for row in rows if row.target is not None]
    batch = scoring_batch(torch.stack(targets), rows)
    reward = build_reward(REWARDS[0])
    assert torch.allclose(reward.score(in_8_bits(batch)), reward.score(batch), atol=2e-3)
