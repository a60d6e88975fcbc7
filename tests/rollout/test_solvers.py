"""Solvers of higher order against the closed form of a flow from one Gaussian to another."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from customized_grpo.algorithms.samplers import SAMPLERS
from customized_grpo.config import load_config
from customized_grpo.rollout.batches import sample_conditioning
from customized_grpo.rollout.collect import NoiseKey
from customized_grpo.rollout.solvers import SOLVERS, solve
from customized_grpo.training import trainer
from customized_grpo.training.algorithm import Draw, build_algorithm

MEAN, STD = 0.7, 0.5
ODE = ("rollout.eta=0", "rollout.shared_noise=false")


def velocity(x: Tensor, sigma: float) -> Tensor:
    """The mean of noise - data given x, for data of N(MEAN, STD^2)."""
    variance = (1 - sigma) ** 2 * STD**2 + sigma**2
    slope = (sigma - (1 - sigma) * STD**2) / variance
    return -MEAN + slope * (x - (1 - sigma) * MEAN)


def levels(n_steps: int, shift: float) -> Tensor:
    even = torch.linspace(1, 0, n_steps + 1, dtype=torch.float64)
    return (shift * even / (1 + (shift - 1) * even)).float()


def euler(sigmas: Tensor, x: Tensor) -> Tensor:
    for sigma, sigma_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        x = x + (sigma_next - sigma) * velocity(x, sigma)
    return x


def exact(x: Tensor, first: float, last: float) -> Tensor:
    """The flow keeps how many standard deviations a state is from the mean of its level."""

    def spread(sigma: float) -> float:
        return float(((1 - sigma) ** 2 * STD**2 + sigma**2) ** 0.5)

    return (1 - last) * MEAN + spread(last) / spread(first) * (x - (1 - first) * MEAN)


def error(solver: str, sigmas: Tensor) -> float:
    """Return the largest error of five states."""
    x = torch.tensor([-2.0, -0.5, 0.0, 1.0, 2.5])
    drawn = euler(sigmas, x) if solver == "euler" else solve(solver, sigmas, x, velocity)
    return float((drawn - exact(x, float(sigmas[0]), float(sigmas[-1]))).abs().max())


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_the_error_falls_by_two_to_the_order_when_steps_double(solver: str, order: int) -> None:
    found = [error(solver, torch.linspace(0.95, 0.3, n_steps + 1)) for n_steps in (32, 64, 128)]
    assert [found[0] / found[1], found[1] / found[2]] == pytest.approx([2**order] * 2, rel=0.1)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun_has_its_order_from_noise_to_image(shift: float) -> None:
    assert error("heun", levels(64, shift)) / error("heun", levels(128, shift)) == pytest.approx(4, rel=0.05)


def test_dpmpp_has_its_order_from_noise_to_image_up_to_a_logarithm() -> None:
    """Near sigma 1 the k-th level is log(1 + 1/k) from the next in log-odds, so the error is log T / T^2."""
    ratio = error("dpmpp_2m", levels(256, 1.0)) / error("dpmpp_2m", levels(512, 1.0))
    assert ratio == pytest.approx(4 * math.log(256) / math.log(512), rel=0.05)


@pytest.mark.parametrize(("solver", "n_steps"), [("heun", 8), ("dpmpp_2m", 16)])
def test_as_many_velocities_leave_a_smaller_error_than_those_of_euler(solver: str, n_steps: int) -> None:
    assert error(solver, levels(n_steps, 1.0)) < 0.4 * error("euler", levels(16, 1.0))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n_steps", [2, 3, 20])
def test_the_model_is_asked_as_often_as_is_planned_and_at_the_given_levels(solver: str, n_steps: int) -> None:
    asked: list[float] = []

    def counted(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return velocity(x, sigma)

    sigmas = levels(n_steps, 3.0)
    assert bool(solve(solver, sigmas, torch.zeros(2), counted).isfinite().all())
    assert len(asked) == SAMPLERS[solver].n_calls(n_steps)
    assert sorted(set(asked), reverse=True) == sigmas[:-1].tolist()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_rollout_of_nft_is_drawn_by_the_solver(solver: str, tmp_path: Path) -> None:
    settings = ["train.algorithm=nft", f"rollout.sampler={solver}", *ODE, "train.group_size=3"]
    config = load_config("two-scale", [*settings, f"run.dir={tmp_path / 'run'}", "rollout.steps=4"])
    with trainer.open_parts(config, trainer.build_engine(config)) as parts:
        algorithm = build_algorithm(parts, parts.engine.partition(1))
        samples = algorithm.draw(Draw([parts.data.train[0], parts.data.train[9]], 0))
        everyone = sample_conditioning(samples.conditionings, 3, slice(0, 6))
        policy = parts.policy
        key = NoiseKey(0, 0)
        noise = [key.generator("initial", name, n) for name in samples.prompt_ids for n in range(3)]
        start = policy.noise(noise, 16, 16)
        with torch.no_grad():
            expected = solve(
                solver, parts.sampler.sigmas, start, lambda x, sigma: policy.velocity(x, sigma, everyone)
            )
    assert torch.allclose(samples.clean, expected, atol=1e-6)
    assert not torch.allclose(samples.clean, start, atol=0.1)
