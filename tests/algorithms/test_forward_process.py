"""The mathematics of NFT and AWM against closed forms, and against sums written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from customized_grpo.algorithms import forward_process as forward
from customized_grpo.algorithms.objective import policy_loss

B, D = 6, 5
SIGMA, BETA, BOUND = 0.6, 0.4, 2.0


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Noise levels


def test_every_part_of_the_trajectory_is_drawn_from_and_the_mean_is_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([forward.draw_progress(4, generator) for _ in range(2000)])
    assert torch.equal((draws * 4).floor(), torch.arange(4.0, dtype=torch.float64).expand(2000, 4))
    # mean of a uniform number in the k-th quarter: (k + 1/2) / 4, standard error .0016
    expected = (torch.arange(4, dtype=torch.float64) + 0.5) / 4
    assert torch.allclose(draws.mean(0), expected, atol=0.007)


def test_levels_are_those_of_the_schedule_at_its_steps_and_between_them() -> None:
    sigmas = torch.tensor([1.0, 0.9, 0.6, 0.0])
    progress = torch.tensor([0.0, 1 / 6, 1 / 3, 0.5, 2 / 3, 5 / 6], dtype=torch.float64)
    levels = forward.levels_at(progress, sigmas)
    assert levels.tolist() == pytest.approx([1.0, 0.95, 0.9, 0.75, 0.6, 0.3])
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        forward.levels_at(torch.tensor([1.0]), sigmas)


def test_a_noised_sample_is_the_line_from_sample_to_noise() -> None:
    clean, noise = draw(B, D), draw(B, D, seed=1)
    assert torch.equal(forward.noised(clean, noise, 0.0), clean)
    assert torch.equal(forward.noised(clean, noise, 1.0), noise)
    assert torch.allclose(forward.noised(clean, noise, 0.25), 0.75 * clean + 0.25 * noise)


# NFT


def test_optimality_is_a_half_without_advantage_and_bounded() -> None:
    advantage = torch.tensor([-9.0, -2.0, 0.0, 1.0, 2.0, 9.0])
    assert forward.optimality(advantage, BOUND).tolist() == [0.0, 0.0, 0.5, 0.75, 1.0, 1.0]
    with pytest.raises(ValueError, match="bound"):
        forward.optimality(advantage, 0.0)


def test_the_positive_and_the_negative_policy_mirror_each_other_in_the_old_one() -> None:
    velocity, old = draw(B, D), draw(B, D, seed=1)
    positive, negative = forward.implicit_policies(velocity, old, BETA)
    assert torch.allclose(positive, (1 - BETA) * old + BETA * velocity)
    assert torch.allclose(negative, (1 + BETA) * old - BETA * velocity)
    with pytest.raises(ValueError, match="beta"):
        forward.implicit_policies(velocity, old, 0.0)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_optimum_is_the_papers_step_towards_the_good_samples(beta: float) -> None:
    """Theorem 3.2 by brute force: a world of five samples, whose posterior at x_s is known exactly."""
    samples = torch.tensor([-1.5, -0.4, 0.2, 1.0, 1.3], dtype=torch.float64)
    share_good = torch.tensor([0.1, 0.9, 0.5, 1.0, 0.3], dtype=torch.float64)
    x = 0.35
    noise = (x - (1 - SIGMA) * samples) / SIGMA  # the noise that leads each sample to x
    posterior = torch.softmax(-noise.square() / 2, 0)
    targets = noise - samples
    old = (posterior * targets).sum()

    def loss(velocity: Tensor) -> Tensor:
        positive, negative = forward.implicit_policies(velocity, old, beta)
        good = share_good * (targets - positive).square()
        return (posterior * (good + (1 - share_good) * (targets - negative).square())).sum()

    # the loss is a parabola in the velocity, whose lowest point three values give
    step = 0.5
    low, middle, high = (loss(old + shift) for shift in (-step, 0.0, step))
    optimum = old - step * (high - low) / (2 * (high - 2 * middle + low))
    good = (posterior * share_good).sum()
    good_velocity = (posterior * share_good * targets).sum() / good
    assert float(optimum) == pytest.approx(float(old + 2 / beta * good * (good_velocity - old)), rel=1e-9)


def nft_gradient_by_hand(
    clean: np.ndarray, noise: np.ndarray, velocity: np.ndarray, old: np.ndarray, advantage: np.ndarray
) -> np.ndarray:
    """Gradient of the sum of NFT's losses in the velocity, entry by entry, in NumPy."""
    x = (1 - SIGMA) * clean + SIGMA * noise
    gradient = np.zeros_like(velocity)
    for n in range(B):
        share = min(max(0.5 + advantage[n] / (2 * BOUND), 0.0), 1.0)
        for sign, weight in ((1, share), (-1, 1 - share)):
            policy = old[n] + sign * BETA * (velocity[n] - old[n])
            error = x[n] - SIGMA * policy - clean[n]
            scale = BOUND / BETA * weight / (D * np.abs(error).mean())
            gradient[n] += scale * 2 * error * (-SIGMA * sign * BETA)
    return gradient


def test_the_gradient_of_nft_is_the_one_written_by_hand() -> None:
    clean, noise, old = draw(B, D), draw(B, D, seed=1), draw(B, D, seed=2)
    velocity, advantage = draw(B, D, seed=3).requires_grad_(), 2 * draw(B, seed=4)
    x = forward.noised(clean, noise, SIGMA)
    loss = forward.nft_loss(x, clean, SIGMA, velocity, old, advantage, beta=BETA, bound=BOUND)
    assert loss.shape == (B,)
    (gradient,) = torch.autograd.grad(loss.sum(), velocity)
    arrays = [tensor.detach().numpy() for tensor in (clean, noise, velocity, old, advantage)]
    assert np.allclose(gradient.numpy(), nft_gradient_by_hand(*arrays), rtol=1e-10)


@pytest.mark.parametrize(("beta", "bound"), [(0.1, 3.0), (1.0, 3.0), (1.0, 50.0)])
def test_on_policy_nft_pulls_by_the_advantage_whatever_beta_and_the_bound_are(
    beta: float, bound: float
) -> None:
    clean, noise, old = draw(B, D), draw(B, D, seed=1), draw(B, D, seed=2)
    velocity, advantage = old.clone().requires_grad_(), draw(B, seed=4).clamp(-3, 3)
    x = forward.noised(clean, noise, SIGMA)
    loss = forward.nft_loss(x, clean, SIGMA, velocity, old, advantage, beta=beta, bound=bound)
    (gradient,) = torch.autograd.grad(loss.sum(), velocity)
    scale = (x - SIGMA * old - clean).abs().mean(1)
    matching = forward.matching_log_prob(velocity, clean, noise, SIGMA**2)
    (expected,) = torch.autograd.grad(-(advantage / scale * matching).sum(), velocity)
    assert torch.allclose(gradient, expected, rtol=1e-10)


def test_a_sample_that_is_met_exactly_has_no_loss_and_no_nan() -> None:
    clean, noise = draw(B, D), draw(B, D, seed=1)
    velocity = (noise - clean).requires_grad_()
    x = forward.noised(clean, noise, SIGMA)
    loss = forward.nft_loss(
        x, clean, SIGMA, velocity, velocity.detach(), torch.ones(B), beta=BETA, bound=BOUND
    )
    (gradient,) = torch.autograd.grad(loss.sum(), velocity)
    assert float(loss.detach().abs().max()) < 1e-20
    assert bool(gradient.isfinite().all())


# AWM


def test_the_first_step_of_awm_is_advantage_weighted_flow_matching() -> None:
    clean, noise = draw(B, D), draw(B, D, seed=1)
    velocity, advantage = draw(B, D, seed=2).requires_grad_(), draw(B, seed=3)
    log_prob = forward.matching_log_prob(velocity, clean, noise, 0.5)
    result = policy_loss(log_prob, log_prob.detach(), advantage, 1.0)
    (gradient,) = torch.autograd.grad(result.loss, velocity)
    # d/dv of mean_n A_n w mean_d (v - target)^2
    expected = advantage[:, None] * 0.5 * 2 * (velocity.detach() - (noise - clean)) / (B * D)
    assert torch.equal(result.ratio, torch.ones(B, dtype=torch.float64))
    assert torch.allclose(gradient, expected, rtol=1e-10)


def test_the_ratio_of_awm_grows_where_the_new_velocity_is_nearer_to_the_sample() -> None:
    clean, noise = draw(B, D), draw(B, D, seed=1)
    target = noise - clean
    near = forward.matching_log_prob(target + 0.1, clean, noise, 1.0)
    far = forward.matching_log_prob(target + 0.3, clean, noise, 1.0)
    assert (near - far).tolist() == pytest.approx([0.09 - 0.01] * B)


@pytest.mark.parametrize(("name", "expected"), [("uniform", 1.0), ("sigma", 0.4), ("sigma_squared", 0.16)])
def test_a_level_weighs_what_its_name_says(name: str, expected: float) -> None:
    assert forward.LEVEL_WEIGHTS[name](0.4) == pytest.approx(expected)


# Both


def test_the_divergence_is_the_kl_of_a_gaussian_step() -> None:
    velocity, reference = draw(B, D), draw(B, D, seed=1)
    length, std = 0.1, 0.3
    x = draw(B, D, seed=2)
    steps = [torch.distributions.Normal(x - length * v, std) for v in (velocity, reference)]
    kl = torch.distributions.kl_divergence(steps[0], steps[1]).mean(1)
    divergence = forward.velocity_divergence(velocity, reference)
    assert torch.allclose(kl, length**2 / (2 * std**2) * divergence)
    assert float(forward.velocity_divergence(velocity, velocity).max()) == 0.0


def test_the_old_policy_is_the_trained_one_at_first_and_then_follows_more_slowly() -> None:
    decays = [forward.old_decay(iteration, 0.001, 0.5) for iteration in (0, 1, 100, 500, 10_000)]
    assert decays == pytest.approx([0.0, 0.001, 0.1, 0.5, 0.5])
    assert math.isclose(forward.old_decay(10_000, 0.001, 0.0), 0.0)
