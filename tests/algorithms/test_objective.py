from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.algorithms.advantages import group_advantages
from customized_grpo.algorithms.objective import gaussian_kl, normalised_log_ratio, policy_loss
from customized_grpo.algorithms.rules import Linear as LinearRule
from customized_grpo.algorithms.rules import combine
from customized_grpo.algorithms.samplers import SAMPLERS, log_prob
from customized_grpo.algorithms.schedules import Linear as LinearSchedule
from customized_grpo.algorithms.schedules import prompt_weights

B, D = 6, 5
CLIP = 1e-4


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_first_pass_has_ratio_one_and_nothing_clipped():
    x, velocity = draw(B, D).float(), draw(B, D, seed=1).float()
    mean, std = SAMPLERS["dance"](x, velocity, 0.8, 0.7, 0.4, 0.93)
    x_next = mean + std * draw(B, D, seed=2).float()
    replayed = SAMPLERS["dance"](x, velocity, 0.8, 0.7, 0.4, 0.93)
    result = policy_loss(log_prob(x_next, *replayed), log_prob(x_next, mean, std), draw(B).float(), 1e-5)
    assert torch.equal(result.ratio, torch.ones(B))
    assert float(result.clip_fraction) == 0
    assert float(result.loss) == pytest.approx(-float(draw(B).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "loss", "clipped"),
    [
        (0.5, 1.0, -(1 + 0.1), 1),  # good sample, already likelier: stopped
        (0.5, -1.0, math.exp(0.5), 0),  # bad sample, likelier: pushed back in full
        (-0.5, 1.0, -math.exp(-0.5), 0),  # good sample, less likely: pulled back in full
        (-0.5, -1.0, 1 - 0.1, 1),  # bad sample, already less likely: stopped
        (0.05, 1.0, -math.exp(0.05), 0),
        (0.5, 0.0, 0.0, 0),
    ],
)
def test_clip_branches(log_ratio: float, advantage: float, loss: float, clipped: int):
    log_prob_ = torch.tensor([log_ratio], requires_grad=True)
    result = policy_loss(log_prob_, torch.zeros(1), torch.tensor([advantage]), 0.1)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss)
    assert float(result.clip_fraction) == clipped
    assert (float(log_prob_.grad) == 0) is bool(clipped or advantage == 0)


def test_gradient_at_ratio_one_is_minus_a_z_over_std():
    x, z, advantage = draw(B, D), draw(B, D, seed=1), draw(B, seed=2)
    theta = draw(D, seed=3).requires_grad_()
    eta, s, t = 0.4, 0.8, 0.7

    def mean_of(parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return SAMPLERS["dance"](x, torch.sin(x * parameter), s, t, eta, 0.93)

    mean, std = mean_of(theta)
    x_next = (mean + std * z).detach()
    old = log_prob(x_next, mean, std).detach()
    loss = policy_loss(log_prob(x_next, mean, std), old, advantage, CLIP).loss
    (actual,) = torch.autograd.grad(loss, theta)

    # m = x - D v - (eta^2 / 2)(D / s)(x + (1 - s) v), so dm/dv by hand; v = sin(x theta).
    dm_dv = -(s - t) * (1 + eta**2 / (2 * s) * (1 - s))
    dm = dm_dv * torch.cos(x * theta.detach()) * x
    expected = -(advantage[:, None] * z / std * dm).mean(0) / D
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)

    def loss_of(parameter: torch.Tensor) -> torch.Tensor:
        # A wide clip range: gradcheck's finite differences must not cross its corners.
        return policy_loss(log_prob(x_next, *mean_of(parameter)), old, advantage, 0.5).loss

    assert torch.autograd.gradcheck(loss_of, (theta,))


def test_micro_batches_add_up_to_the_batch():
    new, old, advantage = 1e-4 * draw(B), torch.zeros(B, dtype=torch.float64), draw(B, seed=1)
    valid = torch.tensor([True, True, False, True, True, True])
    for mask in (None, valid):
        total = B if mask is None else int(mask.sum())
        whole = policy_loss(new, old, advantage, CLIP, valid=mask).loss
        for size in (1, 2, 3):
            parts = [
                policy_loss(n, o, a, CLIP, valid=v if mask is not None else None, total=total).loss
                for n, o, a, v in zip(*(x.split(size) for x in (new, old, advantage, valid)), strict=True)
            ]
            torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_invalid_samples_count_nowhere_even_when_nan():
    new, old, advantage = draw(B) / 100, torch.zeros(B, dtype=torch.float64), draw(B, seed=1)
    valid = torch.tensor([True, False, True, True, False, True])
    expected = policy_loss(new[valid], old[valid], advantage[valid], 0.01)
    spoiled = torch.where(valid, new, math.nan).requires_grad_()
    actual = policy_loss(spoiled, old, torch.where(valid, advantage, math.nan), 0.01, valid=valid)
    actual.loss.backward()
    torch.testing.assert_close(actual.loss, expected.loss)
    torch.testing.assert_close(actual.clip_fraction, expected.clip_fraction)
    assert spoiled.grad.isfinite().all() and torch.count_nonzero(spoiled.grad[~valid]) == 0


def test_a_batch_without_valid_samples_has_zero_loss_and_gradient():
    new = torch.zeros(B, requires_grad=True)
    result = policy_loss(new, torch.zeros(B), torch.ones(B), CLIP, valid=torch.zeros(B, dtype=torch.bool))
    result.loss.backward()
    assert result.loss.item() == 0 and torch.count_nonzero(new.grad) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: policy_loss(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(4, 2), CLIP),
        lambda: policy_loss(torch.zeros(4), torch.zeros(1), torch.zeros(4), CLIP),
        lambda: policy_loss(torch.zeros(4), torch.zeros(4), torch.zeros(4), 0.0),
        lambda: policy_loss(torch.zeros(4), torch.zeros(4), torch.zeros(4), CLIP, total=0),
    ],
)
def test_shapes_and_ranges_are_checked(call):
    with pytest.raises(ValueError):
        call()


def test_per_reward_advantages_reach_the_loss_with_the_weights_of_their_step():
    # Two rewards, two steps of other weights: collapsing rewards per sample first cannot give this.
    advantages = group_advantages(draw(12, 2), 12)
    weights = prompt_weights(LinearSchedule(start=1.0, end=0.25), 3)
    losses = []
    for step in (0, 1):
        w_p = weights[step]
        advantage = combine(LinearRule(), advantages, torch.stack([w_p, 1 - w_p]))
        log_prob_ = torch.zeros(12, dtype=torch.float64, requires_grad=True)
        policy_loss(log_prob_, torch.zeros(12, dtype=torch.float64), advantage, CLIP).loss.backward()
        losses.append(-12 * log_prob_.grad)
    torch.testing.assert_close(losses[0], advantages[:, 0])
    torch.testing.assert_close(losses[1], 0.75 * advantages[:, 0] + 0.25 * advantages[:, 1])


# --- KL -----------------------------------------------------------------------------------------------------


def test_kl_is_zero_at_the_reference():
    mean = draw(B, D)
    assert torch.count_nonzero(gaussian_kl(mean, mean, torch.tensor(0.3))) == 0


@pytest.mark.parametrize("std", [torch.tensor(0.3).double(), torch.rand(B, 1, 1).double() + 0.1])
def test_kl_equals_the_closed_form_of_torch(std: torch.Tensor):
    mean, reference = draw(B, 3, D), draw(B, 3, D, seed=1)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(reference, std)).mean((1, 2))
    torch.testing.assert_close(gaussian_kl(mean, reference, std), expected)


def test_kl_has_a_gradient_towards_the_reference():
    mean, reference = draw(B, D).requires_grad_(), draw(B, D, seed=1)
    gaussian_kl(mean, reference, torch.tensor(0.5).double()).sum().backward()
    torch.testing.assert_close(mean.grad, (mean.detach() - reference) / (0.25 * D))


# --- ratio normalisation ------------------------------------------------------------------------------------


@given(seed=st.integers(0, 50), std=st.floats(0.05, 2.0))
def test_the_normalised_log_ratio_is_the_mean_of_dm_times_z(seed: int, std: float):
    old_mean, z, dm = (
        draw(B, 2, D, seed=seed),
        draw(B, 2, D, seed=seed + 100),
        0.1 * draw(B, 2, D, seed=seed + 200),
    )
    sigma = torch.full((B, 1, 1), std, dtype=torch.float64)
    for spread in (sigma, sigma[0, 0, 0]):
        x_next = old_mean + spread * z
        new, old = log_prob(x_next, old_mean + dm, spread), log_prob(x_next, old_mean, spread)
        actual = normalised_log_ratio(new, old, old_mean + dm, old_mean, spread)
        torch.testing.assert_close(actual, (dm * z).mean((1, 2)), atol=1e-10, rtol=1e-8)


def test_normalisation_centres_the_ratio_which_is_shifted_down_without_it():
    old_mean, z = torch.zeros(20_000, D, dtype=torch.float64), draw(20_000, D)
    dm, std = torch.full_like(old_mean, 0.2), torch.tensor(0.1).double()
    x_next = old_mean + std * z
    new, old = log_prob(x_next, old_mean + dm, std), log_prob(x_next, old_mean, std)
    assert float((new - old).mean()) == pytest.approx(-0.04 / 0.02, abs=0.05)
    assert float(normalised_log_ratio(new, old, old_mean + dm, old_mean, std).mean()) == pytest.approx(
        0, abs=0.003
    )


@pytest.mark.parametrize("std", [0.0, math.nan])
def test_a_deterministic_step_has_neither_kl_nor_ratio(std: float):
    mean, flat = draw(B, D), torch.zeros(B)
    with pytest.raises(ValueError, match="std"):
        gaussian_kl(mean, mean, torch.tensor(std))
    with pytest.raises(ValueError, match="std"):
        normalised_log_ratio(flat, flat, mean, mean, torch.tensor(std))
