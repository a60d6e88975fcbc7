"""Graphs are kept where they fit the memory: the decision, its numbers and its words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny_families
from customized_grpo.config import Config
from customized_grpo.data.examples import Example
from customized_grpo.planning import replay
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.rollout.batches import sample_conditioning
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.rollout.sampler import build_sampler
from customized_grpo.training import graph_memory
from customized_grpo.training.graph_memory import GraphMemory, GraphSize

Recipe = Callable[..., Config]


@pytest.fixture(scope="module")
def parts(recipe: Recipe, make_adapted: Callable[[Config], Flux1Policy]) -> Any:
    """As much of a run's parts as the decision needs."""
    config = recipe("model.precision=bf16")
    policy = make_adapted(config)
    return SimpleNamespace(
        config=config,
        policy=policy,
        sampler=build_sampler(policy, config.rollout, 64, 64),
        encoder=PromptEncoder(policy, (64, 64)),
        engine=SimpleNamespace(device=torch.device("cpu"), world_size=1),
    )


def test_a_graph_is_as_large_as_two_of_its_batches_say(parts: Any, examples: list[Example]) -> None:
    conditioning = parts.encoder(examples[:1])[0]
    size = GraphSize.measure(parts.policy, parts.sampler, conditioning)
    six = conditioning.repeat_interleave(6)
    x = parts.policy.noise([torch.Generator().manual_seed(i) for i in range(6)], 64, 64)
    known = [
        x,
        *six.per_sample.values(),
        *six.shared.values(),
        *replay.known_tensors(parts.policy.transformer),
    ]
    left = replay.bytes_left(lambda: parts.sampler.transition(parts.policy, x, 0, six), known)
    assert size.fixed + 6 * size.per_sample == pytest.approx(left, rel=0.02)
    assert size.per_sample > 1e5


def test_graphs_are_kept_as_long_as_they_take_at_most_half_of_what_is_free(
    parts: Any, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    conditionings = parts.encoder(examples)
    buckets = [example.bucket for example in examples]
    size = GraphSize.measure(parts.policy, parts.sampler, conditionings[0])
    memory = GraphMemory(parts)
    needed = memory.n_steps * (size.fixed + 6 * size.per_sample)
    monkeypatch.setattr(graph_memory, "free_bytes", lambda device: 2 * needed)
    assert memory.decide(buckets, conditionings)
    assert memory.sentence.startswith("updates go back through the rollout's own passes")
    assert memory.savings() == ["train.reuse_rollout_graph=never"]
    monkeypatch.setattr(graph_memory, "free_bytes", lambda device: 2 * needed - 2)
    assert not memory.decide(buckets, conditionings)
    assert memory.sentence.startswith("updates compute the trained steps again: graphs kept")
    assert memory.savings() == []


def test_a_recipe_that_cannot_reuse_them_asks_for_no_memory(
    parts: Any, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_memory, "free_bytes", None)
    parts = SimpleNamespace(**{**vars(parts), "config": recipe("train.inner_epochs=2")})
    memory = GraphMemory(parts)
    assert not memory.decide([], [])
    assert "train.inner_epochs=2" in memory.sentence


def test_the_longest_text_stands_for_all_where_texts_have_several_lengths(
    recipe: Recipe,
    make_adapted: Callable[[Config], Flux1Policy],
    examples: list[Example],
    tmp_path: Path,
) -> None:
    """Qwen-Image-2.1 is called once for each length in a batch; a graph grows with the text."""
    settings = ["model.family=qwen_image21", "model.guidance=1.0", "model.max_text_tokens=64"]
    path = tiny_families.save("qwen_image21", tmp_path / "base")
    # a batch of both prompts
    config = recipe(*settings, f"model.path={path}", "train.group_size=2", "rollout.batch_size=4")
    policy = make_adapted(config)
    encoder = PromptEncoder(policy, (64, 64))
    short, long = (dataclasses.replace(examples[0], prompt=text) for text in ("a toy", "a red toy " * 5))
    conditionings = encoder([short, long])
    lengths = [int(one.per_sample["prompt_length"][0]) for one in conditionings]
    assert lengths[1] > lengths[0] + 5
    sampler = build_sampler(policy, config.rollout, 64, 64)
    engine = SimpleNamespace(device=torch.device("cpu"), world_size=1)
    memory = GraphMemory(SimpleNamespace(config=config, policy=policy, sampler=sampler, engine=engine))
    needed = memory._needed([short.bucket] * 2, conditionings) / memory.n_steps
    everyone = sample_conditioning(conditionings, 2, slice(0, 4))
    x = policy.noise([torch.Generator().manual_seed(i) for i in range(4)], 64, 64)
    known = [x, *everyone.per_sample.values(), *everyone.shared.values()]
    known += replay.known_tensors(policy.transformer)
    left = replay.bytes_left(lambda: sampler.transition(policy, x, 0, everyone), known)
    of_the_first = GraphSize.measure(policy, sampler, conditionings[0])
    assert of_the_first.fixed + 4 * of_the_first.per_sample < left <= needed < 1.3 * left
    # a longer text that comes later is measured again, a shorter one is not
    (size,) = memory.sizes.values()
    memory._needed([short.bucket], conditionings[:1])
    assert list(memory.sizes.values()) == [size] and size[0] == lengths[1]
