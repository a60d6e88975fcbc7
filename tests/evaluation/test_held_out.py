"""Held-out scores: kept as they are, paired by row, and never an interval that one subject cannot give."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.data.examples import Example
from customized_grpo.evaluation.alarms import TrainingHealth
from customized_grpo.evaluation.changes import monitor_record, train_gaps
from customized_grpo.evaluation.held_out import evaluate_policy
from customized_grpo.evaluation.scores import HeldOutScores, summary
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.rewards import FunctionReward
from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.executors import Scorer
from customized_grpo.rewards.executors.inline import InlineExecutor
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.rollout.scoring import scoring_batch

IDS = ["a/0", "a/1", "b/0", "b/1"]
SOUND = TrainingHealth({}, {}, {})
SUBJECTS = ["toy-a", "toy-a", "toy-b", "toy-b"]


def scores(ids: Sequence[str] = IDS, **columns: list[float]) -> HeldOutScores:
    named = {name.replace("__", "/"): values for name, values in columns.items()}
    return HeldOutScores(named, list(ids), SUBJECTS[: len(ids)])


# The table


def test_scores_survive_json_with_missing_values() -> None:
    table = scores(judge__identity=[0.1, math.nan, 1 / 3, -0.5], reward__prompt=[1.0, 2.0, 3.0, 4.0])
    text = json.dumps(table.to_json(), allow_nan=False)
    back = HeldOutScores.from_json(json.loads(text))
    assert back.ids == IDS
    assert back.subjects == SUBJECTS
    assert back.columns["reward/prompt"] == table.columns["reward/prompt"]
    assert math.isnan(back.columns["judge/identity"][1])
    assert back.columns["judge/identity"][2] == 1 / 3


def test_a_change_is_paired_row_by_row() -> None:
    base = scores(judge__prompt=[0.0, 1.0, 5.0, 9.0])
    tuned = scores(judge__prompt=[0.25, 1.25, 5.25, 9.25])
    change = tuned.change("judge/prompt", base)
    assert (change.mean, change.low, change.high) == pytest.approx((0.25, 0.25, 0.25))
    assert change.clusters == 2
    unpaired = tuned.interval("judge/prompt")
    assert unpaired.high - unpaired.low > 1


def test_a_pair_with_a_missing_half_does_not_count() -> None:
    base = scores(judge__prompt=[0.0, 0.0, 0.0, math.nan])
    tuned = scores(judge__prompt=[1.0, math.nan, 3.0, 100.0])
    change = tuned.change("judge/prompt", base)
    assert (change.mean, change.rows) == (2.0, 2)


@pytest.mark.parametrize("ids", [["a/1", "a/0", "b/0", "b/1"], ["a/0", "a/1", "b/0", "c/1"]])
def test_evaluations_of_other_rows_cannot_be_compared(ids: list[str]) -> None:
    base, other = scores(judge__prompt=[0.0] * 4), scores(ids, judge__prompt=[1.0] * 4)
    with pytest.raises(ValueError, match="same prompts and samples"):
        other.change("judge/prompt", base)


def test_metrics_are_means_with_intervals_of_the_judges_only() -> None:
    table = scores(judge__identity=[0.0, 0.2, 0.4, math.nan], reward__prompt=[1.0, 1.0, 2.0, 2.0])
    line = table.metrics()
    assert line["judge/identity"] == pytest.approx(0.2)
    assert line["reward/prompt"] == 1.5
    assert line["judge/identity_low"] <= 0.2 <= line["judge/identity_high"]
    assert "reward/prompt_low" not in line


def test_a_metric_that_one_subject_has_gets_no_interval_and_nobody_fails() -> None:
    lonely = [0.1, 0.2, math.nan, math.nan]
    base = scores(judge__prompt=lonely, judge__identity=[0.0, 0.1, 0.2, 0.3])
    tuned = scores(judge__prompt=lonely, judge__identity=[0.1, 0.2, 0.3, 0.4])
    line = tuned.metrics()
    assert line["judge/prompt"] == pytest.approx(0.15)
    assert "judge/prompt_low" not in line
    assert summary(base, tuned)["base"].keys() == {"judge/identity"}
    assert monitor_record(1, tuned, base, SOUND).held_out_change == {}


def test_a_column_without_any_value_is_nan_and_left_out_of_the_summary() -> None:
    empty = scores(judge__prompt=[math.nan] * 4)
    assert math.isnan(empty.metrics()["judge/prompt"])
    assert summary(empty, empty) == {"base": {}, "tuned": {}, "difference": {}}


def test_the_summary_holds_base_tuned_and_their_paired_difference() -> None:
    base, tuned = scores(judge__prompt=[0.0, 1.0, 5.0, 9.0]), scores(judge__prompt=[1.0, 2.0, 6.0, 10.0])
    result = summary(base, tuned)
    assert result["base"]["judge/prompt"]["mean"] == 3.75
    assert result["tuned"]["judge/prompt"]["mean"] == 4.75
    assert result["difference"]["judge/prompt"] == pytest.approx({"mean": 1.0, "low": 1.0, "high": 1.0})
    json.dumps(result, allow_nan=False)


# What the alarms look at


def test_the_monitor_record_holds_paired_changes_by_kind() -> None:
    names = ("judge__prompt", "judge__identity", "reward__prompt", "reward__identity")
    monitors = ("monitor__copy_score", "monitor__background_similarity")
    rising = [0.0, 0.1, 0.2, 0.3]
    base = scores(**{name: rising for name in names + monitors})
    moved = {name: [v + 0.1 * i for v in rising] for i, name in enumerate(names + monitors, start=1)}
    health = TrainingHealth({"prompt": 0.5}, {"identity": 0.25}, {"prompt": 1.0})
    record = monitor_record(20, scores(**moved), base, health)
    assert record.iteration == 20
    assert record.held_out_change["prompt"].mean == pytest.approx(0.1)
    assert record.held_out_change["identity"].mean == pytest.approx(0.2)
    assert record.proxy_change["prompt"].mean == pytest.approx(0.3)
    assert record.proxy_change["identity"].mean == pytest.approx(0.4)
    assert record.copy_change is not None and record.copy_change.mean == pytest.approx(0.5)
    assert record.background_change is not None and record.background_change.mean == pytest.approx(0.6)
    assert record.zero_std_share == {"prompt": 0.5}
    assert record.nan_share == {"identity": 0.25}
    assert record.image_shift == {}
    assert record.train_reward == {"prompt": 1.0}


def test_image_statistics_are_measured_in_the_bases_standard_deviations() -> None:
    base = scores(monitor__saturation=[0.1, 0.2, 0.3, 0.4])
    moved = scores(monitor__saturation=[0.3, 0.4, 0.5, 0.6])
    spread = float(torch.tensor([0.1, 0.2, 0.3, 0.4]).std())
    record = monitor_record(1, moved, base, SOUND)
    assert record.image_shift == {"saturation": pytest.approx(0.2 / spread, rel=1e-5)}
    back = monitor_record(1, base, moved, SOUND)
    assert back.image_shift == {"saturation": pytest.approx(-0.2 / spread, rel=1e-5)}, "a fall is no rise"


def test_without_judges_nothing_is_called_hacking() -> None:
    base, tuned = scores(reward__prompt=[0.0] * 4), scores(reward__prompt=[1.0] * 4)
    record = monitor_record(1, tuned, base, SOUND)
    assert record.held_out_change == {}
    assert record.proxy_change == {}
    assert record.copy_change is None


def test_the_lead_of_training_is_measured_in_the_bases_standard_deviations() -> None:
    base = scores(reward__prompt=[0.1, 0.2, 0.3, math.nan])
    now = scores(reward__prompt=[0.5, 0.5, math.nan, 0.8])
    health = TrainingHealth({}, {}, {"prompt": 0.9, "identity": 0.5})
    assert train_gaps(now, health.reward) == {"gap/prompt": pytest.approx(0.3)}
    record = monitor_record(1, now, base, health)
    assert record.train_gap == {"prompt": pytest.approx(0.3 / 0.1)}
    constant = scores(reward__prompt=[0.2] * 4)
    assert monitor_record(1, now, constant, health).train_gap == {}


def test_images_that_have_lost_their_score_are_counted_among_those_that_had_one() -> None:
    nan = math.nan
    base = scores(judge__identity=[0.5, 0.5, 0.5, nan], score__dino=[0.5] * 4, monitor__copy_score=[0.0] * 4)
    now = scores(judge__identity=[nan, 0.9, 0.9, nan], score__dino=[0.5] * 4, monitor__copy_score=[nan] * 4)
    record = monitor_record(1, now, base, SOUND)
    assert record.lost_share == {"judge/identity": pytest.approx(1 / 3)}
    assert monitor_record(1, base, now, SOUND).lost_share == {}


def test_diversity_is_compared_with_the_base_and_is_no_image_statistic() -> None:
    base, now = scores(monitor__diversity=[0.4] * 4), scores(monitor__diversity=[0.1, 0.1, 0.3, 0.3])
    record = monitor_record(1, now, base, SOUND)
    assert record.diversity_ratio == pytest.approx(0.5)
    assert record.image_shift == {}
    assert monitor_record(1, scores(), scores(), SOUND).diversity_ratio is None


# Generating and judging


class Painter:
    """A policy that paints its initial noise, so that an image tells which noise and prompt it came from."""

    device = torch.device("cpu")
    placement = SimpleNamespace(text_encoders_wait=False)

    def encoding(self) -> AbstractContextManager[None]:
        return nullcontext()

    def encode(self, prompts: Sequence[str], references: Any, height: int, width: int) -> Conditioning:
        return Conditioning({"row": torch.tensor([float(len(p)) for p in prompts])}, {}, height, width)

    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return torch.stack([torch.rand(1, 3 * height * width, generator=g) for g in generators])

    def velocity(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        return torch.zeros_like(x)

    def decode(self, x: Tensor, height: int, width: int) -> Tensor:
        return x.reshape(-1, 3, height, width)


class FirstPixel:
    def columns(self, images: Tensor, examples: Sequence[Example]) -> dict[str, Tensor]:
        return {"judge/prompt": images[:, 0, 0, 0]}


def rows(count: int) -> list[Example]:
    image, mask = torch.full((3, 8, 8), 0.5), torch.ones(1, 8, 8)
    return [Example(f"row-{i}", "a toy" + "!" * i, (image,), (mask,), None, f"toy-{i}") for i in range(count)]


def first_pixel(batch: ScoringBatch) -> Tensor:
    return batch.images[:, 0, 0, 0]


def last_pixel(batch: ScoringBatch) -> Tensor:
    return batch.images[:, 2, 7, 7]


REWARDS = [
    FunctionReward("first", "prompt", first_pixel),
    FunctionReward("last", "prompt", last_pixel),
    FunctionReward("again", "identity", last_pixel),
]


def evaluate(
    batch_size: int,
    seed: int = 0,
    samples_per_prompt: int = 2,
    scorer: Scorer | None = None,
    **options: Any,
) -> tuple[HeldOutScores, Tensor]:
    policy: Any = Painter()
    return evaluate_policy(
        policy,
        rows(3),
        scorer or Scorer.inline(REWARDS),
        FirstPixel(),
        encoder=PromptEncoder(policy, (8, 8)),
        sigmas=torch.tensor([1.0, 0.5, 0.0]),
        samples_per_prompt=samples_per_prompt,
        seed=seed,
        batch_size=batch_size,
        **options,
    )


def test_rows_are_named_by_prompt_and_sample_and_do_not_depend_on_the_batch() -> None:
    table, images = evaluate(batch_size=4)
    assert table.ids == ["row-0/0", "row-0/1", "row-1/0", "row-1/1", "row-2/0", "row-2/1"]
    assert table.subjects == ["toy-0", "toy-0", "toy-1", "toy-1", "toy-2", "toy-2"]
    assert table.columns["judge/prompt"] == images[:, 0, 0, 0].tolist()
    assert len(set(table.columns["judge/prompt"])) == 6, "every row has noise of its own"
    single, _ = evaluate(batch_size=1)
    assert single.columns["judge/prompt"] == table.columns["judge/prompt"]
    again, _ = evaluate(batch_size=4, seed=1)
    assert not set(again.columns["judge/prompt"]) & set(table.columns["judge/prompt"])


def test_every_prompt_has_the_diversity_of_its_own_images() -> None:
    table, images = evaluate(batch_size=4)
    centred = torch.nn.functional.normalize((images - 0.5).flatten(1).double(), dim=1)
    expected = [float(1 - centred[n] @ centred[n + 1]) for n in (0, 0, 2, 2, 4, 4)]
    assert table.columns["monitor/diversity"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 6])
def test_diversity_is_the_same_to_the_bit_wherever_a_batch_ends(batch_size: int) -> None:
    together, _ = evaluate(batch_size=9, samples_per_prompt=3)
    batches, _ = evaluate(batch_size=batch_size, samples_per_prompt=3)
    assert batches.columns["monitor/diversity"] == together.columns["monitor/diversity"]


def test_images_are_kept_only_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    _, everything = evaluate(batch_size=2, samples_per_prompt=8)
    batches: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    columns = FirstPixel.columns

    def watch(self: FirstPixel, images: Tensor, examples: Sequence[Example]) -> dict[str, Tensor]:
        batches.append(weakref.ref(images))
        return columns(self, images, examples)

    def count() -> None:
        alive.append(sum(batch() is not None for batch in batches))

    monkeypatch.setattr(FirstPixel, "columns", watch)
    _, shown = evaluate(batch_size=2, samples_per_prompt=8, kept=[0, 9], before_batch=count)
    assert torch.equal(shown, everything[[0, 9]])
    assert len(batches) == 12 and max(alive) == 1, "the batch before is the only one"
    _, none = evaluate(batch_size=2, kept=())
    assert none.shape == (0, 3, 8, 8)


def test_one_image_of_a_prompt_has_no_diversity() -> None:
    table, _ = evaluate(batch_size=4, samples_per_prompt=1)
    assert "monitor/diversity" not in table.columns


def test_rewards_of_a_kind_are_averaged_by_their_weights() -> None:
    executors = [InlineExecutor(reward) for reward in REWARDS]
    scorer = Scorer(executors, ["stop"] * 3, [3.0, 1.0, 7.0])
    table, images = evaluate(batch_size=6, scorer=scorer)
    images = (images * 255).round() / 255  # what rewards see
    expected = 0.75 * images[:, 0, 0, 0] + 0.25 * images[:, 2, 7, 7]
    assert table.columns["reward/prompt"] == pytest.approx(expected.tolist(), rel=1e-6)
    assert table.columns["reward/identity"] == pytest.approx(images[:, 2, 7, 7].tolist(), rel=1e-6)
    for name, own in (("first", images[:, 0, 0, 0]), ("last", images[:, 2, 7, 7])):  # and each by its name
        assert table.columns[f"score/{name}"] == pytest.approx(own.tolist(), rel=1e-6)


def test_an_evaluation_can_be_stopped_before_every_batch() -> None:
    calls: list[None] = []
    evaluate(batch_size=4, before_batch=lambda: calls.append(None))
    assert len(calls) == 2


def test_rewards_get_masks_only_if_every_row_has_them() -> None:
    some = rows(2)
    whole = scoring_batch(torch.zeros(2, 3, 8, 8), some)
    assert whole.reference_masks is not None and len(whole.reference_masks) == 2
    assert [row["id"] for row in whole.meta] == ["row-0", "row-1"]
    unmasked = Example("row-9", "a toy", some[0].references, None, None, "toy-9")
    assert scoring_batch(torch.zeros(2, 3, 8, 8), [some[0], unmasked]).reference_masks is None
