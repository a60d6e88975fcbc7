"""The first steps of a group are drawn once, and no sample is another one by a bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import customized_grpo.rollout.collect as collecting
from customized_grpo.config import Config
from customized_grpo.data.examples import Example
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.rollout.collect import NoiseKey, collect
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.rollout.sampler import StepPlan, build_sampler
from customized_grpo.rollout.shared_start import MIN_ROWS, count_shared_steps
from customized_grpo.rollout.trajectory import Trajectory

GROUP = 5
STEPS = 5
WINDOW = StepPlan(frozenset({2, 3}), [2, 3])
FIRST_IS_NOT_TRAINED = StepPlan(frozenset(range(STEPS - 1)), [1, 3])
FIRST_IS_TRAINED = StepPlan(frozenset(range(STEPS - 1)), [0, 3])


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def policy(
    request: pytest.FixtureRequest,
    recipe: Callable[..., Config],
    make_adapted: Callable[[Config], Flux1Policy],
) -> Flux1Policy:
    return make_adapted(recipe(f"model.precision={request.param}"))


@pytest.mark.parametrize(
    ("plan", "n_shared"),
    [(WINDOW, 2), (FIRST_IS_NOT_TRAINED, 1), (FIRST_IS_TRAINED, 0)],
    ids=["window", "first step not trained", "first step trained"],
)
@pytest.mark.parametrize("batch_size", [10, 7], ids=["one batch", "a batch too small to share"])
def test_a_shared_start_changes_no_bit_and_saves_its_steps(
    policy: Flux1Policy,
    recipe: Callable[..., Config],
    examples: list[Example],
    monkeypatch: pytest.MonkeyPatch,
    plan: StepPlan,
    n_shared: int,
    batch_size: int,
) -> None:
    config = recipe(f"rollout.steps={STEPS}", f"rollout.batch_size={batch_size}")
    rows: list[int] = []
    velocity = policy.velocity

    def counting(x: Tensor, *arguments: Any) -> Tensor:
        rows.append(len(x))
        return velocity(x, *arguments)

    monkeypatch.setattr(policy, "velocity", counting)

    def draw() -> Trajectory:
        rows.clear()
        return collect(
            policy,
            build_sampler(policy, config.rollout, 64, 64),
            examples,
            config.rollout,
            encoder=PromptEncoder(policy, (64, 64)),
            group_size=GROUP,
            plan=plan,
            noise_key=NoiseKey(0, 0),
            repeats=[0, 3],  # the second group starts from the noise of a fourth one of its prompt
        )

    assert count_shared_steps(plan) == n_shared
    shared = draw()
    n_sharing = 2 * GROUP if batch_size == 10 else batch_size  # the rest of the second case is 3 samples
    assert sum(rows) == 2 * GROUP * STEPS - n_sharing * n_shared + MIN_ROWS * n_shared
    monkeypatch.setattr(collecting, "MIN_ROWS", 1000)
    alone = draw()
    assert sum(rows) == 2 * GROUP * STEPS
    for name in ("x", "x_next", "log_prob", "images"):
        assert torch.equal(getattr(shared, name), getattr(alone, name)), name


def test_samples_that_start_from_noise_of_their_own_share_nothing(
    policy: Flux1Policy, recipe: Callable[..., Config], examples: list[Example]
) -> None:
    config = recipe("rollout.shared_noise=false", f"rollout.steps={STEPS}")
    trajectory = collect(
        policy,
        build_sampler(policy, config.rollout, 64, 64),
        examples[:1],
        config.rollout,
        encoder=PromptEncoder(policy, (64, 64)),
        group_size=MIN_ROWS,
        plan=WINDOW,
        noise_key=NoiseKey(0, 0),
    )
    states = trajectory.x[0].flatten(1)
    assert torch.cdist(states, states).fill_diagonal_(1).min() > 1e-3
