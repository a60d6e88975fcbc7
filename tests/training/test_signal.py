"""What the learning signal of an iteration is, for every rule and every set of kinds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.algorithms.rules import RULES, Batch, Rule, combine
from customized_grpo.config import Config
from customized_grpo.rewards.base import FunctionReward
from customized_grpo.training.metrics import mean_health, signal_health, signal_metrics
from customized_grpo.training.signal import LearningSignal
from customized_grpo.training.waste import find_waste

Recipe = Callable[..., Config]
G = 4
N = 3 * G
KINDS = ("identity", "quality", "prompt", "quality")
NAMES = ("id", "sharp", "text", "calm")


class Outside(Rule):
    """A rule of a user, which knows nothing of quality."""

    def __call__(self, batch: Batch) -> Tensor:
        prompt, identity = batch.pair
        return prompt * identity


def signal_of(
    recipe: Recipe,
    columns: str,
    *overrides: str,
    scores: Tensor | None = None,
    kinds: tuple[Any, ...] = KINDS,
) -> LearningSignal:
    """Return the signal of random scores of the rewards whose numbers are in `columns`."""
    chosen = [int(k) for k in columns]
    entries = ", ".join(f"{{name: {NAMES[k]}, weight: {k + 1}}}" for k in chosen)
    config = recipe(f"train.group_size={G}", f"rewards=[{entries}]", *overrides)
    rewards = [FunctionReward(NAMES[k], kinds[k], torch.zeros_like) for k in chosen]  # type: ignore[arg-type]
    table = all_scores() if scores is None else scores
    return LearningSignal.from_scores(config, rewards, table[:, chosen], 0)


def all_scores() -> Tensor:
    return torch.randn(N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(column: int) -> Tensor:
    """Return the advantage of one reward: centred in its group, in units of the sample deviation."""
    groups = all_scores()[:, column].reshape(-1, G)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (centred.square().sum(1, keepdim=True) / (G - 1)).sqrt()).flatten()


QUALITY = (2 * by_hand(1) + 4 * by_hand(3)) / 6  # weights 2 and 4 of the two quality rewards


@pytest.mark.parametrize("name", [*RULES, "outside"])
@pytest.mark.parametrize("weight", [0.5, 1.25])
def test_under_every_rule_quality_is_added_with_its_own_weight(
    recipe: Recipe, name: str, weight: float
) -> None:
    """A = A_rule(A_p, A_id; w_p, 1 - w_p) + w_q A_q, w_p of the schedule."""
    rule = Outside() if name == "outside" else RULES[name]()
    signal = signal_of(recipe, "0123", f"advantage.quality_weight={weight}")
    step = 2
    prompt_weight = signal.weights[step]
    pair = combine(
        rule,
        torch.stack([by_hand(2), by_hand(0)], 1),
        torch.stack([prompt_weight, 1 - prompt_weight]),
        rewards=all_scores()[:, [2, 0]],
        group_size=G,
        adv_clip=math.inf,
    )
    actual = signal.combined(step, rule, G, math.inf)
    torch.testing.assert_close(actual, pair + weight * QUALITY, rtol=1e-6, atol=1e-7)
    assert float((actual - pair).abs().max()) > 0.1


def test_a_rule_without_quality_is_what_it_was(recipe: Recipe) -> None:
    signal = signal_of(recipe, "02")
    pair = combine(
        RULES["sars"](),
        signal.advantages,
        torch.stack([signal.weights[1], 1 - signal.weights[1]]),
        group_size=G,
    )
    assert torch.equal(signal.combined(1, RULES["sars"](), G, 5.0), pair)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("0", by_hand(0)),
        ("2", by_hand(2)),
        ("13", QUALITY),
        ("013", by_hand(0) + 0.5 * QUALITY),
        ("123", by_hand(2) + 0.5 * QUALITY),
    ],
)
def test_one_kind_alone_is_plain_grpo(recipe: Recipe, columns: str, expected: Tensor) -> None:
    signal = signal_of(recipe, columns)
    for step in (0, 2):
        actual = signal.combined(step, RULES["sars"](), G, math.inf)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)
    assert float(signal.combined(0, RULES["sars"](), G, 0.25).abs().max()) == 0.25


def test_a_sample_without_quality_is_not_trained_on_unless_quality_is_only_watched(recipe: Recipe) -> None:
    scores = all_scores()
    scores[1, 1] = math.nan
    counted = signal_of(recipe, "012", scores=scores)
    assert counted.valid.tolist() == [n != 1 for n in range(N)]
    assert float(counted.combined(0, RULES["linear"](), G, 5.0)[1]) == 0
    watched = signal_of(recipe, "012", "advantage.quality_weight=0", scores=scores)
    assert bool(watched.valid.all()) and watched.kinds == ("prompt", "identity")
    without = signal_of(recipe, "02", scores=scores)
    rule = RULES["linear"]()
    assert torch.equal(watched.combined(0, rule, G, 5.0), without.combined(0, rule, G, 5.0))
    assert math.isfinite(signal_metrics(watched, G)["score/sharp"])


def test_the_samples_of_an_update_keep_their_quality(recipe: Recipe) -> None:
    signal = signal_of(recipe, "0123")
    rule = RULES["linear"]()
    part = signal.rows(slice(G, 2 * G)).combined(0, rule, G, 5.0)
    assert torch.equal(part, signal.combined(0, rule, G, 5.0)[G : 2 * G])


def test_every_reward_has_its_own_mean_spread_and_gaps(recipe: Recipe) -> None:
    scores = all_scores()
    scores[:3, 3] = math.nan
    metrics = signal_metrics(signal_of(recipe, "0123", scores=scores), G)
    for k, name in enumerate(NAMES):
        column = scores[:, k]
        scored = column[~column.isnan()]
        expected = {
            f"score/{name}": float(scored.mean()),
            f"score/{name}/std": float(scored.std()),
            f"score/{name}/group_std": float(column.reshape(-1, G).std(1).nanmean()),
            f"score/{name}/nan_share": 3 / N if k == 3 else 0.0,
        }
        assert {key: metrics[key] for key in expected} == pytest.approx(expected)
    assert metrics["reward/quality"] != metrics["score/sharp"]
    assert {"reward/prompt", "reward/identity", "advantage/rho", "advantage/conflict"} <= metrics.keys()


@pytest.mark.parametrize(("columns", "kind"), [("0", "identity"), ("2", "prompt"), ("1", "quality")])
def test_one_kind_alone_has_no_conflict_to_measure(recipe: Recipe, columns: str, kind: str) -> None:
    metrics = signal_metrics(signal_of(recipe, columns), G)
    assert [name for name in metrics if name.startswith(("reward/", "advantage/"))] == [
        f"reward/{kind}",
        f"reward/{kind}_group_std",
    ]


def test_the_health_of_a_reward_is_not_hidden_by_another_of_its_kind(recipe: Recipe) -> None:
    """Two prompt rewards, of which one is constant and one lacks scores: their mean shows neither."""
    scores = all_scores()
    scores[:, 1] = 0.5
    scores[0, 3] = math.nan
    kinds = ("identity", "prompt", "prompt", "prompt")
    health = mean_health([signal_health(signal_of(recipe, "0123", scores=scores, kinds=kinds), G)])
    assert health.zero_std == {"id": 0.0, "sharp": 1.0, "text": 0.0, "calm": 0.0}
    assert health.nan == pytest.approx({"id": 0.0, "sharp": 0.0, "text": 0.0, "calm": 1 / N})
    assert set(health.reward) == {"prompt", "identity"}


def test_quality_alone_can_keep_an_iteration_from_being_wasted(recipe: Recipe) -> None:
    scores = torch.zeros(N, 4, dtype=torch.float64)
    constant = signal_of(recipe, "012", scores=scores)
    assert find_waste(constant.names, constant.scores, constant, [0.1], 0.5) is not None
    scores[:, 1] = all_scores()[:, 1]
    taught = signal_of(recipe, "012", scores=scores)
    assert find_waste(taught.names, taught.scores, taught, [0.1], 0.5) is None
