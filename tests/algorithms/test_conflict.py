from __future__ import annotations

import math

import pytest
import torch

from customized_grpo.algorithms.advantages import group_advantages
from customized_grpo.algorithms.conflict import conflict_null, matched_constant_weights, quadrants
from customized_grpo.algorithms.rules import Linear, Sars, SarsMatched, combine
from customized_grpo.algorithms.sars import sars_bonus, sars_pull

G = 12


def correlated_rewards(correlation: float, groups: int, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(groups * G, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    identity = correlation * noise[:, 0] + math.sqrt(1 - correlation**2) * noise[:, 1]
    return torch.stack([noise[:, 0], identity], dim=1)


def test_quadrants_count_signs_and_leave_zeros_out():
    a = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 2.0], [-1.0, -1.0], [0.0, 5.0], [0.0, 0.0]])
    assert quadrants(a) == {"conflict": 0.5, "both_positive": 0.25, "both_negative": 0.25}


def test_quadrants_of_nothing_are_unknown():
    assert all(math.isnan(share) for share in quadrants(torch.zeros(4, 2)).values())


@pytest.mark.parametrize("correlation", [-0.9, -0.5, 0.0, 0.5, 0.9])
def test_the_null_is_what_gaussian_rewards_give(correlation: float):
    rewards = correlated_rewards(correlation, groups=20_000)
    assert quadrants(rewards)["conflict"] == pytest.approx(conflict_null(correlation), abs=0.004)


def test_uncorrelated_rewards_conflict_half_the_time():
    assert conflict_null(0.0) == 0.5


# At -.9 the published .047 was a Monte-Carlo estimate; the quadrature gives .0487.
@pytest.mark.parametrize(
    ("correlation", "pull"), [(-0.9, 0.047), (-0.5, 0.167), (0.0, 0.240), (0.5, 0.282), (0.9, 0.304)]
)
def test_pull_of_sars_reproduces_the_table(correlation: float, pull: float):
    assert sars_pull(correlation) == pytest.approx(pull, abs=2e-3)


def test_pull_in_large_groups_approaches_the_gaussian_integral():
    line = torch.linspace(0, 8, 801, dtype=torch.float64)
    a, b = torch.meshgrid(line, line, indexing="ij")
    density = torch.exp(-(a.square() + b.square()) / 2) / (2 * math.pi)
    integral = torch.trapezoid(torch.trapezoid(2 * b / torch.cosh(a * b).square() * density, line), line)
    assert sars_pull(0.0, group_size=2000) == pytest.approx(float(integral), abs=1e-3)


@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.5])
def test_sars_on_linear_rewards_is_a_pull_towards_equal_weights(correlation: float):
    # Policy N(mean, 1) in the plane, rewards linear in x, so the score function is the noise itself.
    rewards = correlated_rewards(correlation, groups=60_000)
    prompt_direction = torch.tensor([1.0, 0.0], dtype=torch.float64)
    identity_direction = torch.tensor([correlation, math.sqrt(1 - correlation**2)], dtype=torch.float64)
    noise_identity = (rewards[:, 1] - correlation * rewards[:, 0]) / math.sqrt(1 - correlation**2)
    noise = torch.stack([rewards[:, 0], noise_identity], dim=1)
    advantages = group_advantages(rewards, G)

    w_p, gamma = 0.3, 0.4
    weights = torch.tensor([w_p, 1 - w_p], dtype=torch.float64)
    gradient = (combine(Sars(gamma=gamma), advantages, weights)[:, None] * noise).mean(0)
    unit = float((advantages[:, 0] * rewards[:, 0]).mean())
    pull = gamma * sars_pull(correlation)
    expected = (w_p + pull) * prompt_direction + (1 - w_p + pull) * identity_direction
    torch.testing.assert_close(gradient / unit, expected, atol=0.008, rtol=0)

    conflict = advantages.prod(1) < 0
    penalty = torch.where(conflict, sars_bonus(*advantages.T, gamma), 0.0)
    torch.testing.assert_close(
        (penalty[:, None] * noise).mean(0), torch.zeros(2, dtype=torch.float64), atol=0.002, rtol=0
    )
    assert float(penalty.mean()) < -0.03  # the penalty is there, it only has no direction


def test_matched_weights_are_the_direction_and_length_of_sars():
    matched = matched_constant_weights(0.4, 0.4, 0.0)
    pull = 0.4 * sars_pull(0.0)
    assert matched.prompt == pytest.approx((0.4 + pull) / (1 + 2 * pull))
    assert matched.prompt + matched.identity == pytest.approx(1)
    assert matched.step_scale == pytest.approx(1.1915, abs=1e-3)


@pytest.mark.parametrize("prompt_weight", [0.3, 0.7])
def test_the_matched_rule_is_those_weights_at_that_length_whatever_the_step_weighs(prompt_weight: float):
    advantages = group_advantages(correlated_rewards(0.2, groups=4), G)
    weights = torch.tensor([prompt_weight, 1 - prompt_weight], dtype=torch.float64)
    rule = combine(SarsMatched(gamma=0.7, correlation=0.2), advantages, weights, group_size=G)
    matched = matched_constant_weights(prompt_weight, 0.7, 0.2, G)
    constant = torch.tensor([matched.prompt, matched.identity], dtype=torch.float64)
    naive = combine(Linear(), advantages, constant, group_size=G)
    torch.testing.assert_close(rule, matched.step_scale * naive)


def test_matched_weights_without_sars_are_the_weights():
    assert matched_constant_weights(0.3, 0.0, 0.2) == pytest.approx((0.3, 0.7, 1.0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: conflict_null(1.1),
        lambda: sars_pull(1.0),
        lambda: sars_pull(0.0, group_size=3),
        lambda: matched_constant_weights(1.2, 0.4, 0.0),
        lambda: matched_constant_weights(0.5, -0.4, 0.0),
        lambda: quadrants(torch.zeros(4, 3)),
    ],
)
def test_arguments_out_of_range_are_refused(call):
    with pytest.raises(ValueError):
        call()
