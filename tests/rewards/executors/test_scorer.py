"""What the scorer adds to its executors: rounding, overlap, waiting that can be given up, fingerprints."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest
import torch

import tiny_rewards as tiny
from customized_grpo.config.executors import ThreadExecution
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards import FunctionReward, ScoringBatch
from customized_grpo.rewards.executors import (
    InlineExecutor,
    Scorer,
    build_scorer,
    in_8_bits,
)
from customized_grpo.rewards.executors.thread import ThreadExecutor


def mean(batch: ScoringBatch) -> torch.Tensor:
    return batch.images.mean(dim=(1, 2, 3))


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("reward ")}


def test_every_image_and_mask_is_rounded_to_8_bits_once() -> None:
    seen: list[ScoringBatch] = []

    def look(batch: ScoringBatch) -> torch.Tensor:
        seen.append(batch)
        return mean(batch)

    batch = dataclasses.replace(tiny.make_batch(2), image_masks=torch.full((2, 1, 64, 64), 0.3))
    Scorer([InlineExecutor(FunctionReward("look", "quality", look))], ["stop"]).score(batch)
    (found,) = seen
    assert found.reference_masks is not None and found.image_masks is not None
    images = [found.images, found.image_masks, *found.references[0], *found.reference_masks[0]]
    for image in images:
        assert torch.equal((image * 255).round() / 255, image)
    assert (found.images - batch.images).abs().max() <= 0.5 / 255 + 1e-7
    again = in_8_bits(found)
    assert torch.equal(again.images, found.images) and torch.equal(again.image_masks, found.image_masks)


def test_a_thread_scores_while_the_trainer_goes_on() -> None:
    may_go_on = threading.Event()

    def wait_for_trainer(batch: ScoringBatch) -> torch.Tensor:
        assert may_go_on.wait(60), "submit did not return before the scoring was done"
        return mean(batch)

    with Scorer([ThreadExecutor(FunctionReward("w", "quality", wait_for_trainer))], ["stop"]) as scorer:
        scorer.submit(tiny.make_batch(2))
        may_go_on.set()
        assert scorer.collect().shape == (2, 1)


def test_waiting_can_be_given_up() -> None:
    release, scored = threading.Event(), []

    def slow(batch: ScoringBatch) -> torch.Tensor:
        release.wait(60)
        scored.append(len(batch))
        return mean(batch)

    class Stop(Exception):
        pass

    def between() -> None:
        raise Stop

    scorer = Scorer([ThreadExecutor(FunctionReward("slow", "quality", slow))], ["stop"])
    for _ in range(3):
        scorer.submit(tiny.make_batch(2))
    with pytest.raises(Stop):
        scorer.collect(between)
    assert threads() == {"reward slow_0"}
    release.set()
    assert scorer.score(tiny.make_batch(1)).shape == (1, 1)
    assert scored == [2, 1]  # what was in work, and the new one; what waited was given up
    scorer.close()
    assert threads() == set() and scorer.collect().shape == (0, 1)


def test_closing_leaves_no_thread() -> None:
    begun, release, scored = threading.Event(), threading.Event(), []

    def slow(batch: ScoringBatch) -> torch.Tensor:
        begun.set()
        release.wait(60)
        scored.append(len(batch))
        return mean(batch)

    executor = ThreadExecutor(FunctionReward("slow", "quality", slow), release=release.set)
    scorer = Scorer([executor], ["stop"])
    for samples in (2, 3):
        scorer.submit(tiny.make_batch(samples))
    assert begun.wait(60)
    scorer.close()
    assert threads() == set() and scored[0] == 2


def test_the_rewards_of_a_recipe_are_built_where_it_says() -> None:
    thread = ThreadExecution(kind="thread")
    configs = [
        RewardConfig(name="own_rewards:brightness"),
        RewardConfig(name="own_rewards:Own", executor=thread),
    ]
    with build_scorer(configs) as scorer:
        assert [type(reward) for reward in scorer.rewards] == [InlineExecutor, ThreadExecutor]


def test_a_reward_that_cannot_be_built_closes_those_before_it() -> None:
    thread = ThreadExecution(kind="thread")
    configs = [RewardConfig(name="own_rewards:Own", executor=thread), RewardConfig(name="no_such:Reward")]
    with pytest.raises(UserError, match="no_such"):
        build_scorer(configs)
    assert threads() == set()


def test_scoring_at_once_refuses_to_mix_with_what_was_submitted() -> None:
    scorer = Scorer([InlineExecutor(FunctionReward("f", "quality", mean))], ["stop"])
    scorer.submit(tiny.make_batch(2))
    with pytest.raises(ValueError, match="collect"):
        scorer.score(tiny.make_batch(2))


def test_scores_by_kind_are_weighted_means_in_one_order() -> None:
    kinds = ("identity", "quality", "prompt", "prompt")
    rewards = [InlineExecutor(FunctionReward(f"r{k}", kind, mean)) for k, kind in enumerate(kinds)]
    scorer = Scorer(rewards, ["stop"] * 4, weights=[5.0, 1.0, 1.0, 3.0])
    scores = torch.tensor(
        [[0.25, 9.0, 1.0, 2.0], [0.5, float("nan"), 4.0, 8.0], [0.75, 9.0, float("nan"), 1.0]]
    )
    columns = scorer.by_kind(scores)
    assert list(columns) == ["prompt", "identity", "quality"]
    assert columns["quality"][::2].tolist() == [9.0, 9.0] and columns["quality"][1].isnan()
    assert columns["identity"].tolist() == [0.25, 0.5, 0.75]
    assert columns["prompt"][:2].tolist() == [1.75, 7.0] and columns["prompt"][2].isnan()
    equal = Scorer(rewards[2:], ["stop"] * 2).by_kind(scores[:, 2:])
    assert list(equal) == ["prompt"] and equal["prompt"][0] == 1.5
    assert scorer.by_name(scores)["r3"][:2].tolist() == [2.0, 8.0]


def test_interrupting_the_program_passes_through_an_inline_reward() -> None:
    def interrupted(batch: ScoringBatch) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Scorer([InlineExecutor(FunctionReward("f", "quality", interrupted))], ["drop"]).submit(
            tiny.make_batch(1)
        )


def test_threads_take_their_batches_in_turn() -> None:
    order: list[int] = []

    def note(batch: ScoringBatch) -> torch.Tensor:
        time.sleep(0.01 * (4 - len(batch)))
        order.append(len(batch))
        return mean(batch)

    with Scorer([ThreadExecutor(FunctionReward("note", "quality", note))], ["stop"]) as scorer:
        for samples in (1, 2, 3):
            scorer.submit(tiny.make_batch(samples))
        scorer.collect()
    assert order == [1, 2, 3]


def brightest(batch: ScoringBatch) -> torch.Tensor:
    """Rank of each image in its group by brightness, from 0 to 1."""
    return mean(batch).argsort().argsort().float() / max(len(batch) - 1, 1)


@pytest.mark.parametrize("in_threads", [False, True])
def test_a_groupwise_reward_sees_whole_groups_however_the_batches_cut_them(in_threads: bool) -> None:
    seen: list[list[object]] = []

    def look(batch: ScoringBatch) -> torch.Tensor:
        seen.append([row["id"] for row in batch.meta])
        return brightest(batch)

    alone = FunctionReward("mean", "quality", mean)
    ranked = FunctionReward("rank", "identity", look, groupwise=True)
    batch = ScoringBatch.join([tiny.make_batch(3) for _ in range(3)])
    images = batch.images * torch.linspace(0.2, 1, 9)[:, None, None, None]
    batch = dataclasses.replace(batch, images=images, meta=[{"id": f"r{n // 3}"} for n in range(9)])
    executor = ThreadExecutor(ranked) if in_threads else InlineExecutor(ranked)
    with Scorer([InlineExecutor(alone), executor], ["stop", "stop"]) as scorer:
        for rows in (range(0, 2), range(2, 7), range(7, 9)):
            scorer.submit(batch.select(rows), group_size=3)
        scores = scorer.collect()
        assert seen == [["r0"] * 3, ["r1"] * 3, ["r2"] * 3]
        rounded = in_8_bits(batch)
        expected = [brightest(rounded.select(range(n, n + 3))) for n in (0, 3, 6)]
        assert torch.equal(scores, torch.stack([mean(rounded), torch.cat(expected)], dim=1))
        assert torch.equal(scorer.score(batch, group_size=3), scores)
        scorer.submit(batch.select(range(4)), group_size=3)
        with pytest.raises(ValueError, match="1 samples at the end are no whole group"):
            scorer.collect()
        assert torch.equal(scorer.score(batch, group_size=3), scores)


def test_a_groupwise_reward_that_fails_leaves_its_own_group_unscored() -> None:
    def refuse(batch: ScoringBatch) -> torch.Tensor:
        if batch.meta[0]["id"] == "r1":
            raise ValueError("no")
        return mean(batch)

    batch = dataclasses.replace(tiny.make_batch(4), meta=[{"id": f"r{n // 2}"} for n in range(4)])
    reward = FunctionReward("refuse", "identity", refuse, groupwise=True)
    scorer = Scorer([InlineExecutor(reward)], ["drop"])
    assert scorer.score(batch, group_size=2).isnan().flatten().tolist() == [False, False, True, True]
    (message,) = scorer.take_dropped()
    assert "'r1'" in message
