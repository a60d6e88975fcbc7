from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import tiny_rewards as tiny
from customized_grpo.errors import UserError
from customized_grpo.evaluation.judges import RewardJudges
from customized_grpo.rewards import FunctionReward, Reward, RewardError, ScoringBatch, score_all
from customized_grpo.rewards.base import checked_scores
from customized_grpo.rewards.executors.inline import InlineExecutor
from customized_grpo.rewards.executors.interface import Executor
from customized_grpo.rewards.executors.scorer import OnFailure, Scorer
from customized_grpo.rewards.executors.thread import ThreadExecutor


def brightness(batch: ScoringBatch) -> Tensor:
    return batch.images.mean(dim=(1, 2, 3))


def darkness(batch: ScoringBatch) -> Tensor:
    return -brightness(batch)


def test_score_all_stacks_the_rewards_in_their_order() -> None:
    batch = tiny.make_batch(3)
    rewards = [FunctionReward("b", "quality", brightness), FunctionReward("d", "quality", darkness)]
    scores = score_all(rewards, batch)
    assert torch.equal(scores, torch.stack([brightness(batch), -brightness(batch)], dim=1))


def test_nan_is_kept_and_infinity_becomes_nan() -> None:
    values = torch.tensor([1.0, float("nan"), float("inf"), float("-inf")])
    scores = score_all([FunctionReward("f", "prompt", lambda _: values)], tiny.make_batch(4))
    assert scores[:, 0].isnan().tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (torch.zeros(2), r"torch.float32 \[2\]"),
        (torch.zeros(3, 1), r"\[3, 1\]"),
        (torch.tensor(0.5), r"torch.float32 \[\]"),
        (torch.zeros(3, dtype=torch.float64), "float64"),
        (torch.zeros(3, dtype=torch.int64), "int64"),
        ([0.0, 0.0, 0.0], "list"),
    ],
)
def test_what_is_not_a_score_per_sample_is_refused_by_name(result: Any, text: str) -> None:
    with pytest.raises(RewardError, match=rf"'mine' must return torch.float32 \[3\], got .*{text}"):
        score_all([FunctionReward("mine", "prompt", lambda _: result)], tiny.make_batch(3))


def test_a_reward_that_raises_is_named_with_its_samples_and_its_cause() -> None:
    def broken(batch: ScoringBatch) -> Tensor:
        raise ZeroDivisionError("oh")

    with pytest.raises(
        RewardError, match=r"'mine' failed on .*row-0.*row-2.*ZeroDivisionError: oh"
    ) as caught:
        score_all([FunctionReward("mine", "prompt", broken)], tiny.make_batch(3))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_users_mistake_passes_through_as_it_is() -> None:
    def refusing(batch: ScoringBatch) -> Tensor:
        raise UserError("no mask")

    with pytest.raises(UserError, match="^no mask$"):
        score_all([FunctionReward("mine", "prompt", refusing)], tiny.make_batch(3))


def test_a_whole_of_which_a_part_lacks_masks_has_none() -> None:
    batch = tiny.make_batch(3)
    assert batch.reference_masks is not None
    bare = dataclasses.replace(batch, reference_masks=None, image_masks=None)
    for parts in ([batch, bare], [bare, batch]):
        joined = ScoringBatch.join(parts)
        assert len(joined) == 6 and joined.reference_masks is None and joined.image_masks is None
    assert ScoringBatch.join([batch, batch]).reference_masks == batch.reference_masks * 2


def test_select_takes_every_part_of_a_sample_along() -> None:
    batch = tiny.make_batch(3)
    chosen = batch.select([2, 0])
    assert chosen.prompts == [batch.prompts[2], batch.prompts[0]]
    assert [row["id"] for row in chosen.meta] == ["row-2", "row-0"]
    assert torch.equal(chosen.images, batch.images[[2, 0]])
    assert torch.equal(chosen.references[0][0], batch.references[2][0])
    assert chosen.reference_masks is not None and len(chosen.reference_masks) == 2
    assert chosen.image_masks is not None and len(chosen.image_masks) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda b: {"prompts": b.prompts[:1]},
        lambda b: {"references": b.references[:1]},
        lambda b: {"reference_masks": b.reference_masks[:1]},
        lambda b: {"image_masks": b.image_masks[:1]},
        lambda b: {"images": b.images.double()},
        lambda b: {"images": b.images[0]},
    ],
)
def test_a_batch_whose_parts_disagree_is_refused(change: Callable[[ScoringBatch], dict[str, Any]]) -> None:
    batch = tiny.make_batch(2)
    with pytest.raises(ValueError, match="images"):
        dataclasses.replace(batch, **change(batch))


def test_a_function_is_a_reward() -> None:
    reward = FunctionReward("b", "quality", brightness, version=3)
    assert isinstance(reward, Reward)
    assert reward.fingerprint()["version"] == 3 and reward.fingerprint()["function"].endswith(":brightness")


def test_a_reward_that_exits_is_a_failed_reward() -> None:
    def leave(batch: ScoringBatch) -> torch.Tensor:
        raise SystemExit(0)

    with pytest.raises(RewardError, match="reward 'leaves' failed on samples .*: SystemExit: 0"):
        checked_scores(FunctionReward("leaves", "quality", leave), tiny.make_batch(2))


def test_a_reference_that_samples_share_is_mapped_once() -> None:
    batch = tiny.make_batch(2)
    reference = batch.references[0][0]
    group = dataclasses.replace(batch, references=[[reference]] * 2, reference_masks=None, image_masks=None)
    seen: list[int] = []

    def halve(image: Tensor) -> Tensor:
        seen.append(id(image))
        return image / 2

    mapped = group.map_images(halve)
    assert seen.count(id(reference)) == 1
    assert torch.equal(mapped.references[1][0], reference / 2)


def one_mask_each(batch: ScoringBatch) -> ScoringBatch:
    masks = [[torch.ones(1, *image.shape[1:]) for image in row] for row in batch.references]
    return dataclasses.replace(batch, reference_masks=masks, image_masks=torch.ones_like(batch.images[:, :1]))


@pytest.mark.parametrize(
    "part",
    [
        lambda batch: batch.images,
        lambda batch: batch.references[1][0],
        lambda batch: batch.reference_masks[2][0],
        lambda batch: batch.image_masks,
    ],
    ids=["images", "references", "masks", "masks of images"],
)
@pytest.mark.parametrize("on_failure", ["stop", "drop"])
def test_a_reward_that_changes_its_batch_in_place_is_refused(
    part: Callable[[ScoringBatch], Tensor], on_failure: OnFailure
) -> None:
    def normalising(batch: ScoringBatch) -> Tensor:
        part(batch).sub_(0.5)
        return torch.zeros(len(batch))

    scorer = Scorer([InlineExecutor(FunctionReward("mine", "prompt", normalising))], [on_failure])
    with pytest.raises(UserError, match="changed in place while reward 'mine' scored.*row-0"):
        scorer.score(one_mask_each(tiny.make_batch(3)))


def test_what_a_device_reports_late_is_told_with_the_rewards_name() -> None:
    # as a kernel that failed: the error comes when the scores are read
    reward = FunctionReward("mine", "prompt", lambda batch: torch.empty(len(batch), device="meta"))
    with pytest.raises(RewardError, match="'mine' failed on .*row-0.*NotImplementedError"):
        checked_scores(reward, tiny.make_batch(3))


class Sized:
    """A reward whose fingerprint JSON would not give back as it is."""

    name = "sized"
    kind: Literal["prompt"] = "prompt"

    def score(self, batch: ScoringBatch) -> Tensor:
        return torch.zeros(len(batch))

    def fingerprint(self) -> dict[str, Any]:
        return {"size": (224, 224), "thresholds": {1: 0.5}}


@pytest.mark.parametrize("executor", [InlineExecutor, ThreadExecutor])
def test_a_fingerprint_is_what_a_checkpoint_gives_back(executor: Callable[[Reward], Executor]) -> None:
    with Scorer([executor(Sized())], ["stop"]) as scorer:
        found = scorer.fingerprints()
    assert found == [{"size": [224, 224], "thresholds": {"1": 0.5}}]
    judges = RewardJudges([Sized()], ["sized"], [1.0], by_target=False)
    assert judges.fingerprints() == found == json.loads(json.dumps(found))
