"""Hours on a card, by hand: products at its rate, bytes between them at its bandwidth, unpacked weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from customized_grpo.config import Config
from customized_grpo.errors import UserError
from customized_grpo.planning import replay
from customized_grpo.planning.duration import CARDS, Card, dequantised_bytes, find_card, predict_duration
from customized_grpo.planning.work import batches

Recipe = Callable[..., Config]


def test_a_card_is_found_by_name_or_given_by_its_numbers() -> None:
    assert find_card("H100") is CARDS["h100"]
    card = find_card("165,1008.5")
    assert (card.tflops, card.bandwidth, card.gib) == (165, 1008.5, None)


@pytest.mark.parametrize("text", ["h101", "165", "165,", "a,b", "165,-1", "inf,1", ""])
def test_another_card_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(UserError, match="no card of that name") as caught:
        find_card(text)
    assert "4090" in str(caught.value.hint) and "165,1008" in str(caught.value.hint)


def test_an_iteration_is_products_and_bytes_one_after_the_other() -> None:
    card = Card("one", tflops=100, bandwidth=1000)
    duration = predict_duration(card, operations=1400e12, moved=800e9, unpacked=800e9)
    assert duration.products == pytest.approx(1400 / 70)  # 70 % of 100
    assert duration.between == pytest.approx(1)  # 80 % of 1000
    assert duration.dequantisation == pytest.approx(1)
    assert duration.hours_per_100 == pytest.approx((20 + 1 + 1) / 36)


def test_every_call_and_every_backward_pass_unpacks_all_weights(recipe: Recipe) -> None:
    config = recipe("model.quantisation=nf4", "rollout.batch_size=3", "train.micro_batch_size=2")
    plan = batches(config, n_trained=2, processes=1)  # 2 prompts, 6 samples, 4 steps
    assert dequantised_bytes(config, plan, 1, 1000) == (2 * 4 + 2 * 3 * 2) * 2500
    more = recipe("model.gradient_checkpointing=true", "train.kl_weight=0.1", "model.quantisation=nf4")
    plan = batches(more, n_trained=2, processes=1)  # batches of 6
    assert dequantised_bytes(more, plan, 2, 1000) == 2 * (4 + 2 * 4) * 2500
    assert dequantised_bytes(recipe(), plan, 2, 1000) == 0


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ([], 3),  # old policy, forward, backward
        (["train.kl_weight=0.1"], 4),
        (["train.kl_weight=0.1", "train.kl_reference=old"], 3),
    ],
)
def test_the_old_policy_unpacks_the_weights_as_well(recipe: Recipe, settings: list[str], calls: int) -> None:
    nft = ["train.algorithm=nft", "train.forward.levels=2", "model.quantisation=nf4", *settings]
    config = recipe(*nft, "rollout.batch_size=3", "train.micro_batch_size=2")
    plan = batches(config, n_trained=2, processes=1)  # 2 prompts, 6 samples, 4 steps
    assert dequantised_bytes(config, plan, 1, 1000) == (2 * 4 + 2 * 3 * calls) * 2500


def test_views_and_products_move_no_bytes_between_products() -> None:
    x = torch.ones(4, 8)
    assert replay.moved_bytes(lambda: x.relu()) == 2 * 128
    assert replay.moved_bytes(lambda: x + x[:1]) == 128 + 32 + 128
    assert replay.moved_bytes(lambda: x.view(8, 4).t() @ x.reshape(8, 4)) == 0
    assert replay.moved_bytes(lambda: x.bfloat16()) == 128 + 64
