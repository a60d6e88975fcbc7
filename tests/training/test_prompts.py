"""Prompts that a reward or the generator would cut are told before training, with count and limit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.config import Config
from customized_grpo.data.examples import ManifestSource
from customized_grpo.data.fitting import Fitting
from customized_grpo.data.manifest import Row
from customized_grpo.policies.policy import Policy
from customized_grpo.rewards.executors import build_scorer
from customized_grpo.training.parts import Data, Parts, build_policy
from customized_grpo.training.prompts import prompt_lengths

Recipe = Callable[..., Config]
WORDS = "red hat on the left "
CHINESE = "\u4e00\u53ea\u732b\u5750\u5728\u6c99\u53d1\u4e0a" * 4


@pytest.fixture(scope="module")
def policy(recipe: Recipe) -> Policy:
    return build_policy(recipe())


@pytest.fixture
def sentences(policy: Policy, recipe: Recipe) -> Callable[..., list[str]]:
    def ask(*prompts: str, rewards: str = "rewards=[{name: clip_t, path: toybox}]") -> list[str]:
        config = recipe(rewards)
        rows = [
            Row(id=f"r{k}", prompt=prompt, references=(Path("x.png"),)) for k, prompt in enumerate(prompts)
        ]
        with build_scorer(config.rewards) as scorer:
            data = Data(ManifestSource(rows, Fitting(64, 64)), [], None)
            engine: Any = None
            return prompt_lengths(Parts(config, engine, data, scorer, policy))

    return ask


def test_short_prompts_are_not_told(sentences: Callable[..., list[str]]) -> None:
    assert sentences("a toy wearing a red hat", "") == []


def test_every_encoder_that_cuts_is_named_with_limit_count_and_the_longest(
    sentences: Callable[..., list[str]],
) -> None:
    """ToyBox's CLIP reads 24 tokens and its T5 model.max_text_tokens, 18."""
    told = sentences("a red hat", WORDS * 7)
    assert [sentence.split(" of a prompt")[0] for sentence in told] == [
        "the generator's T5 reads 18 tokens",
        "the generator's CLIP reads 24 tokens",
        "reward clip_t reads 24 tokens",
    ]
    assert all("1 of 2 prompts are longer, the longest has" in sentence for sentence in told)
    assert all("(row 'r1')" in sentence for sentence in told)


def test_a_prompt_without_spaces_is_not_one_word(sentences: Callable[..., list[str]]) -> None:
    """T5 of ToyBox makes one unknown token of it, CLIP one of each character or more."""
    told = sentences(CHINESE)
    assert [sentence.split(" reads")[0] for sentence in told] == ["the generator's CLIP", "reward clip_t"]


def test_noise_and_a_label_do_not_hide_the_tokenizer(sentences: Callable[..., list[str]]) -> None:
    told = sentences(WORDS * 7, rewards="rewards=[{name: clip_t, path: toybox, noise: 0.1, label: loud}]")
    assert told[-1].startswith("reward loud reads 24 tokens")


def test_a_reward_elsewhere_is_said_not_to_be_checked(
    policy: Policy, recipe: Recipe, sentences: Callable[..., list[str]]
) -> None:
    config = recipe("rewards=[{name: clip_t, path: toybox}]")
    with build_scorer(config.rewards) as scorer:
        remote = recipe("rewards=[{name: clip_t, executor: {kind: ray}}]")
        data = Data(ManifestSource([], Fitting(64, 64)), [], None)
        engine: Any = None
        (sentence,) = prompt_lengths(Parts(remote, engine, data, scorer, policy))
    assert "reward clip_t cuts long prompts was not checked: it runs elsewhere (ray)" in sentence
