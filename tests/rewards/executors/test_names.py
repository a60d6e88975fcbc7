"""Rewards are told apart by name, which a label may change."""

from __future__ import annotations

import pytest
import torch

import tiny_rewards as tiny
from customized_grpo.config import load_config
from customized_grpo.errors import UserError
from customized_grpo.rewards.executors import build_scorer, check_names


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["dino", "clip_t", "dino"], "rewards: two have the same name, 'dino' and 'dino'"),
        (["my:own", "my_own"], "'my:own' and 'my_own'"),  # TensorBoard shows both as my_own
        (["a", "a/std"], "'a/std' has a slash"),
    ],
)
def test_names_that_metrics_could_not_tell_apart_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        check_names("rewards", names)
    assert "label" in (refused.value.hint or "")


def test_a_label_is_the_name_of_a_reward_and_changes_no_score() -> None:
    entries = "rewards=[{name: clip_t, path: toybox}, {name: clip_t, path: toybox, noise: 0.1, label: noisy}]"
    config = load_config("toybox-smoke", [entries])
    with build_scorer(config.rewards) as scorer:
        assert [reward.name for reward in scorer.rewards] == ["clip_t", "noisy"]
        scores = scorer.score(tiny.make_batch(2))
        assert torch.equal(scorer.by_name(scores)["noisy"], scores[:, 1])
        assert scorer.fingerprints()[1]["name"] == "clip_t"


def test_two_rewards_of_one_name_are_refused_in_a_recipe() -> None:
    config = load_config(
        "toybox-smoke", ["rewards=[{name: clip_t, path: toybox}, {name: clip_t, path: toybox}]"]
    )
    with pytest.raises(UserError, match="two have the same name"):
        build_scorer(config.rewards)
