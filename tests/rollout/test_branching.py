"""Branches continue a trunk that is training's own sample, do no work twice, and differ as they must."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.config import Config
from customized_grpo.data.examples import Example
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.rollout.branching import BranchPlan, Trunks, draw_branches, draw_trunks
from customized_grpo.rollout.collect import NoiseKey, collect
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.rollout.sampler import build_sampler, plan_steps
from gaussian_policy import SIGMAS, GaussianPolicy, prompts, sampler

Recipe = Callable[..., Config]
KEY = NoiseKey(0, 0)
N_STEPS = len(SIGMAS) - 1


def drawn(
    recipe: Recipe, plan: BranchPlan, *overrides: str, count: int = 3
) -> tuple[Trunks, dict[tuple[int, int], Tensor], Counter[float]]:
    """Trunks; images by point and continuation; samples that passed the policy at each noise level."""
    policy: Any = GaussianPolicy()
    config = recipe("rollout.steps=5", *overrides).rollout
    examples = prompts(count)
    conditionings = PromptEncoder(policy, (2, 2))(examples)
    trunks = draw_trunks(policy, sampler(), examples, conditionings, config, plan, KEY)
    images = {}
    for place, samples, batch in draw_branches(policy, sampler(), examples, trunks, config, plan, KEY):
        for sample, image in zip(range(samples.start, samples.stop), batch, strict=True):
            images[plan.points[place], sample] = image
    passes: Counter[float] = Counter()
    for sigma, n_samples in policy.calls:
        passes[sigma] += n_samples
    return trunks, images, passes


def test_points_are_noisy_steps_evenly_spaced_from_the_first() -> None:
    assert BranchPlan.evenly(range(24), 6, 12, 25).points == [0, 4, 8, 12, 16, 20]
    assert BranchPlan.evenly(range(7), 6, 12, 8).points == [0, 1, 2, 3, 4, 5]
    assert BranchPlan.evenly(range(3), 9, 12, 4).points == [0, 1, 2]
    assert BranchPlan.evenly({5, 4, 6}, 2, 12, 25).points == [4, 5]


def test_a_branch_costs_the_steps_from_its_point_on_and_the_plan_says_how_many(recipe: Recipe) -> None:
    plan = BranchPlan.evenly(range(4), 2, 3, N_STEPS)
    assert plan.points == [0, 2]
    _, images, passes = drawn(recipe, plan)
    # three trunks at every level; two branches of each from step 0, and two more from step 2
    assert list(passes.values()) == [3 + 6, 3 + 6, 3 + 12, 3 + 12, 3 + 12]
    assert sum(passes.values()) == 3 * plan.passes_per_prompt
    assert len(images) + 3 == 3 * plan.images_per_prompt


def test_branches_are_the_same_in_any_batches_and_beside_any_prompts(recipe: Recipe) -> None:
    plan = BranchPlan.evenly(range(4), 4, 4, N_STEPS)
    trunks, together, _ = drawn(recipe, plan, "rollout.batch_size=12")
    _, apart, _ = drawn(recipe, plan, "rollout.batch_size=2")
    _, alone, _ = drawn(recipe, plan, count=1)
    assert all(torch.equal(image, apart[key]) for key, image in together.items())
    assert all(torch.equal(image, together[key]) for key, image in alone.items())
    trunk_images = GaussianPolicy().decode(torch.stack(list(trunks.latents)), 2, 2)
    different = {tuple(image.flatten().tolist()) for image in (*together.values(), *trunk_images)}
    assert len(different) == len(together) + 3, "no branch is the trunk again"


def test_branches_begin_where_the_trunk_is_and_steps_outside_the_window_draw_no_noise(recipe: Recipe) -> None:
    """Only step 1 draws noise: what follows is a function of the state after it."""
    plan = BranchPlan.evenly([1], 3, 200, N_STEPS)
    trunks, images, _ = drawn(recipe, plan, count=1)
    state = trunks.states[1][0]
    green = torch.stack([image[1, 0, 0] for image in images.values()])
    latents = (green - 0.5) / 0.05
    sigma, delta, eta = 0.8, 0.2, 0.7
    mean = float(state[0, 1]) * (1 - eta**2 / 2 * delta / sigma)
    std = eta * delta**0.5
    assert float(latents.mean()) == pytest.approx(mean, abs=4 * std / 199**0.5)
    assert float(latents.std()) == pytest.approx(std, rel=0.25)


@pytest.mark.parametrize("shared", ["true", "false"])
def test_the_trunk_is_the_first_sample_of_training(
    recipe: Recipe,
    make_adapted: Callable[[Config], Flux1Policy],
    examples: list[Example],
    shared: str,
) -> None:
    config = recipe(f"rollout.shared_noise={shared}")
    policy = make_adapted(config)
    size = (64, 64)
    steps = plan_steps(config.rollout, 1.0, 0, 0)
    encoder = PromptEncoder(policy, size)
    recipe_sampler = build_sampler(policy, config.rollout, *size)
    trained = collect(
        policy,
        recipe_sampler,
        examples,
        config.rollout,
        encoder=encoder,
        group_size=2,
        plan=steps,
        noise_key=KEY,
    )
    plan = BranchPlan.evenly(sorted(steps.noisy), 9, 2, 4)
    trunks = draw_trunks(policy, recipe_sampler, examples, encoder(examples), config.rollout, plan, KEY)
    for place, step in enumerate(trained.steps):
        states = torch.stack(list(trunks.states[step]))
        torch.testing.assert_close(states, trained.x[place, ::2], atol=1e-5, rtol=0)
    images = policy.decode(torch.stack(list(trunks.latents)), *size)
    torch.testing.assert_close(images, trained.images[::2], atol=1e-5, rtol=0)
