"""Graphs are kept where they fit the memory: the decision, its numbers and its words."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from customized_grpo.config import Config
from customized_grpo.data.examples import Example
from customized_grpo.planning import replay
from customized_grpo.policies.flux1 import Flux1Policy
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
