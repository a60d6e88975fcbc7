"""The bare loop repeats the calls of an iteration, no more and no fewer."""

from __future__ import annotations

from collections import Counter

import pytest

import bare_loop
from customized_grpo.config import load_config
from saved_work import Iteration

SETTINGS = [
    "train.prompts_per_iteration=2",
    "train.group_size=4",
    "rollout.batch_size=8",
    "train.micro_batch_size=8",
]


@pytest.fixture(scope="module")
def turns() -> bare_loop.Turns:
    return bare_loop.Turns(Iteration(load_config("two-scale", SETTINGS)))


def test_the_calls_of_an_iteration_are_recorded(turns: bare_loop.Turns) -> None:
    config = turns.iteration.config
    counts = Counter((call.method, call.has_graph) for call in turns.calls)
    trained = len(turns.iteration.plan.trained)
    assert counts == {
        ("encode", False): 2,  # one prompt a call
        ("_velocity", True): trained,
        ("_velocity", False): config.rollout.steps - trained,
        ("decode", False): 1,
    }


def test_bare_passes_are_the_same_calls_again_with_their_way_back(turns: bare_loop.Turns) -> None:
    policy = turns.iteration.policy
    for parameter in policy.trainable_parameters():
        parameter.grad = None
    with bare_loop.recording(policy) as again:
        turns.bare(bare_loop.NETWORKS)
    for call, recorded in zip(again, turns.calls, strict=True):
        assert (call.method, call.has_graph) == (recorded.method, recorded.has_graph)
        assert call.arguments[0] is recorded.arguments[0]
    assert any(parameter.grad is not None for parameter in policy.trainable_parameters())
    with bare_loop.recording(policy) as transformer:
        turns.bare(bare_loop.BARE["transformer"])
    assert {call.method for call in transformer} == {"_velocity"}
