from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from customized_grpo.algorithms import samplers
from customized_grpo.algorithms.samplers import SAMPLERS, Level, log_prob, sde_window, trained_steps
from customized_grpo.algorithms.trials import check_sampler

SHAPE = (3, 4, 5)
LEVELS = [(1.0, 0.93), (0.93, 0.8), (0.5, 0.4), (0.11, 0.0), (1.0, 0.0)]
STOCHASTIC = [name for name, sampler in SAMPLERS.items() if sampler.max_eta > 0]
BY_STEPS = [name for name, sampler in SAMPLERS.items() if sampler.solver is None]
"""Samplers that take one step after another; a solver draws whole samples, see rollout/test_solvers.py."""


def transition(
    name: str,
    x: torch.Tensor,
    velocity: torch.Tensor,
    sigma: Level,
    sigma_next: Level,
    eta: float,
    sigma_max: Level,
) -> samplers.Gaussian:
    """One step by a sampler's name; the ODE, which has no noise, is given none."""
    return SAMPLERS[name](x, velocity, sigma, sigma_next, eta if name in STOCHASTIC else 0.0, sigma_max)


def state(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, velocity = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
    return x, velocity


def shifted_sigmas(n_steps: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    base = torch.linspace(1, 0, n_steps + 1, dtype=torch.float64)
    return (3 * base / (1 + 2 * base)).to(dtype)


# --- the variance of Gaussian data, exactly -----------------------------------------------------------------


def final_variance(name: str, eta: float, n_steps: int, variance: float = 0.25, mean: float = 0.7) -> float:
    """Push N(0, 1) through the sampler with the true velocity of data N(mean, variance).

    Every step is affine, x' = a x + c + std z, so two probes give a and V' = a^2 V + std^2 holds exactly.
    """
    sigmas = shifted_sigmas(n_steps)
    probes, current = torch.tensor([0.0, 1.0], dtype=torch.float64), 1.0
    for s, s_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        spread = (1 - s) ** 2 * variance + s**2
        slope = (s - (1 - s) * variance) / spread
        velocity = -mean + slope * (probes - (1 - s) * mean)
        moved, std = transition(name, probes, velocity, s, s_next, eta, sigmas[1])
        current = float(moved[1] - moved[0]) ** 2 * current + float(std) ** 2
    return current


VARIANCES = {
    ("ode", 0.0): (0.547, 0.791, 0.943, 0.994),
    ("dance", 0.7): (0.678, 0.882, 0.971, 0.997),
    ("flow", 0.7): (0.701, 0.871, 0.969, 0.999),
    ("ddim", 1.0): (0.436, 0.651, 0.873, 0.984),
    ("dance_exact", 0.3): (0.536, 0.767, 0.925, 0.989),
    ("flow_exact", 0.7): (0.514, 0.752, 0.926, 0.992),
    ("cps", 0.8): (0.396, 0.512, 0.599, 0.643),
}


@pytest.mark.parametrize(("sampler", "expected"), VARIANCES.items())
def test_final_variance_follows_the_table(sampler: tuple[str, float], expected: tuple[float, ...]):
    actual = [final_variance(*sampler, n_steps) / 0.25 for n_steps in (10, 25, 100, 1000)]
    assert actual == pytest.approx(expected, abs=5.1e-4)


@pytest.mark.parametrize(("name", "eta"), [("ode", 0.0), ("dance", 0.7), ("ddim", 1.0), ("flow_exact", 0.7)])
def test_error_of_the_variance_halves_when_the_steps_double(name: str, eta: float):
    errors = [abs(final_variance(name, eta, n_steps) / 0.25 - 1) for n_steps in (400, 800)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)


def test_cps_does_not_converge_to_the_data():
    assert final_variance("cps", 0.8, 4000) / 0.25 < 0.7


# --- one transition -----------------------------------------------------------------------------------------


def by_the_book(
    name: str, x: torch.Tensor, v: torch.Tensor, s: float, t: float, eta: float, top: float
) -> tuple[torch.Tensor, float]:
    """The formulas as they are usually printed: Euler-Maruyama, or coefficients of x0 and x1."""
    data, noise, d = x - s * v, x + (1 - s) * v, s - t
    if name in ("dance", "flow"):
        e2 = eta**2 if name == "dance" else eta**2 * s / (1 - (top if s == 1 else s))
        return x - d * v - e2 / 2 * d / s * noise, math.sqrt(e2 * d)
    q = {
        "ode": lambda: 0.0,
        "cps": lambda: t * math.sin(eta * math.pi / 2),
        "ddim": lambda: eta * t * math.sqrt(1 - ((1 - s) * t / (s * (1 - t))) ** 2),
        "dance_exact": lambda: t * math.sqrt(1 - math.exp(-(eta**2) * (1 / t - 1 / s))),
        "flow_exact": lambda: t * math.sqrt(1 - (t * (1 - s) / (s * (1 - t))) ** (eta**2)),
    }[name]()
    return (1 - t) * data + math.sqrt(t**2 - q**2) * noise, q


@pytest.mark.parametrize("name", BY_STEPS)
@pytest.mark.parametrize(("s", "t"), [(1.0, 0.93), (0.93, 0.8), (0.5, 0.49), (0.2, 0.01)])
def test_mean_and_std_equal_the_printed_formulas(name: str, s: float, t: float):
    x, v = state(torch.float64)
    mean, std = transition(name, x, v, s, t, 0.6, 0.93)
    expected_mean, expected_std = by_the_book(name, x, v, s, t, 0.6, 0.93)
    torch.testing.assert_close(mean, expected_mean)
    assert float(std) == pytest.approx(expected_std, rel=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("s", "t"), LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eta_zero_is_the_ode_bit_for_bit(name: str, s: float, t: float, dtype: torch.dtype):
    x, v = state(dtype)
    mean, std = SAMPLERS[name].step(x, v, s, t, 0.0, 0.93)
    assert torch.equal(mean, samplers.ode(x, v, s, t)[0])
    assert torch.equal(mean, x - (torch.tensor(s, dtype=dtype) - torch.tensor(t, dtype=dtype)) * v)
    assert float(std) == 0


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("s", "t"), LEVELS)
@pytest.mark.parametrize("eta", [1e-3, 0.4, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_nan_or_infinite_at_either_end(
    name: str, s: float, t: float, eta: float, dtype: torch.dtype
):
    mean, std = SAMPLERS[name].step(*state(dtype), s, t, eta, 0.93)
    assert mean.isfinite().all() and std.isfinite().all() and float(std) >= 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_step_to_zero_is_the_ode(name: str):
    x, v = state()
    mean, std = transition(name, x, v, 0.11, 0.0, 0.7, 0.93)
    assert torch.equal(mean, samplers.ode(x, v, 0.11, 0.0)[0])
    assert float(std) == 0


def test_only_rows_that_step_to_zero_become_deterministic():
    x, v = state()
    s, t = torch.tensor([0.5, 0.11, 0.9]), torch.tensor([0.4, 0.0, 0.8])
    _, std = transition("dance", x, v, s, t, 0.7, 0.93)
    assert (std.flatten() > 0).tolist() == [True, False, True]


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("n_steps", [4, 10, 25])
def test_the_first_std_of_flow_is_eta(eta: float, n_steps: int):
    for dtype in (torch.float32, torch.float64):
        sigmas = shifted_sigmas(n_steps, dtype)
        _, std = transition("flow", *state(dtype), sigmas[0], sigmas[1], eta, sigmas[1])
        assert std == torch.tensor(eta, dtype=dtype)


@given(s=st.floats(0.02, 1.0), share=st.floats(0.01, 0.99))
def test_exact_flow_at_root_two_is_ddim_at_one(s: float, share: float):
    x, v = state(torch.float64)
    exact = samplers.flow_exact(x, v, s, s * share, math.sqrt(2))
    ancestral = samplers.ddim(x, v, s, s * share, 1.0)
    torch.testing.assert_close(exact[0], ancestral[0], atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(exact[1], ancestral[1], atol=1e-15, rtol=1e-12)


@pytest.mark.parametrize("name", ["cps", "ddim", "dance_exact", "flow_exact"])
def test_the_coefficient_family_keeps_the_level_of_noise(name: str):
    # On pure noise (data 0, so v = x / s) mean and fresh noise together must have variance s'^2.
    x = 0.6 * torch.ones(1, 1, dtype=torch.float64)
    mean, std = transition(name, x, x / 0.6, 0.6, 0.5, 0.7, 0.93)
    assert float(mean) ** 2 + float(std) ** 2 == pytest.approx(0.5**2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_by_row_equal_one_row_at_a_time(name: str):
    x, v = state()
    s, t = torch.tensor([1.0, 0.7, 0.3]), torch.tensor([0.93, 0.6, 0.1])
    mean, std = transition(name, x, v, s, t, 0.5, 0.93)
    assert mean.shape == SHAPE and std.shape in {(3, 1, 1), ()}
    for i in range(3):
        row_mean, row_std = transition(name, x[i : i + 1], v[i : i + 1], float(s[i]), float(t[i]), 0.5, 0.93)
        torch.testing.assert_close(mean[i : i + 1], row_mean)
        torch.testing.assert_close(std.expand(3, 1, 1)[i], row_std.reshape(1, 1))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_are_stepped_in_float32(name: str, dtype: torch.dtype):
    x, v = state(dtype)
    mean, std = transition(name, x, v, 0.5, 0.4, 0.5, 0.93)
    expected_mean, expected_std = transition(name, x.float(), v.float(), 0.5, 0.4, 0.5, 0.93)
    assert mean.dtype == std.dtype == torch.float32
    assert torch.equal(mean, expected_mean) and torch.equal(std, expected_std)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_float32_agrees_with_float64(name: str):
    sigmas = shifted_sigmas(1000, torch.float32).double()
    x, v = state(torch.float64)
    for i in (0, 1, 500, 998):
        wide = transition(name, x, v, sigmas[i], sigmas[i + 1], 0.7, sigmas[1])
        narrow = transition(
            name, x.float(), v.float(), sigmas[i].float(), sigmas[i + 1].float(), 0.7, sigmas[1]
        )
        torch.testing.assert_close(narrow[0].double(), wide[0], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(narrow[1].double(), wide[1], atol=0, rtol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_out_of_order_are_refused(name: str):
    for s, t in ((0.4, 0.5), (0.5, 0.5), (1.1, 0.5), (0.5, -0.1), (math.nan, 0.1)):
        with pytest.raises(ValueError, match="sigma"):
            transition(name, *state(), s, t, 0.5, 0.93)


@pytest.mark.parametrize(("name", "eta"), [("dance", -0.1), ("ddim", 1.1), ("cps", 1.1), ("flow", math.nan)])
def test_eta_out_of_range_is_refused(name: str, eta: float):
    with pytest.raises(ValueError, match="eta"):
        transition(name, *state(), 0.5, 0.4, eta, 0.93)


# --- log_prob -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_row", [False, True])
def test_log_prob_equals_torch_normal_with_its_constant(by_row: bool):
    x, mean = state(torch.float64)
    std = (
        torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64).reshape(3, 1, 1)
        if by_row
        else torch.tensor(0.3).double()
    )
    expected = torch.distributions.Normal(mean, std).log_prob(x).mean((1, 2))
    torch.testing.assert_close(log_prob(x, mean, std), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_a_deterministic_step_has_no_log_prob(std: float):
    with pytest.raises(ValueError, match="std"):
        log_prob(*state(), torch.tensor(std))


def rollout(name: str, seed: int, n_steps: int = 8) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """States and log-probs of a trajectory whose velocity is a fixed nonlinear function."""
    generator = torch.Generator().manual_seed(seed)
    sigmas = shifted_sigmas(n_steps, torch.float32)
    states, log_probs = [torch.randn(SHAPE, generator=generator)], []
    for i in range(n_steps):
        x = states[-1]
        mean, std = transition(name, x, torch.tanh(x), sigmas[i], sigmas[i + 1], 0.6, sigmas[1])
        states.append(mean + std * torch.randn(SHAPE, generator=generator))
        if i < n_steps - 1:
            log_probs.append(log_prob(states[-1], mean, std))
    return states, log_probs


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_same_seed_gives_the_same_trajectory(name: str):
    first, again, other = rollout(name, 0)[0], rollout(name, 0)[0], rollout(name, 1)[0]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.allclose(first[-1], other[-1])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_replaying_stored_states_gives_the_same_log_probs_in_any_order(name: str):
    states, log_probs = rollout(name, 0)
    sigmas = shifted_sigmas(8, torch.float32)
    for i in (5, 0, 6, 3):
        mean, std = transition(
            name, states[i], torch.tanh(states[i]), sigmas[i], sigmas[i + 1], 0.6, sigmas[1]
        )
        assert torch.equal(log_prob(states[i + 1], mean, std), log_probs[i])


# --- which steps --------------------------------------------------------------------------------------------


def test_the_window_slides_and_stays_before_the_last_step():
    windows = [sde_window(i, n_steps=10, size=4, shift_every=25) for i in (0, 24, 25, 50, 125, 10_000)]
    assert windows == [range(0, 4), range(0, 4), range(1, 5), range(2, 6), range(5, 9), range(5, 9)]


@pytest.mark.parametrize("bad", [{"size": 10}, {"size": 0}, {"start": 6}, {"shift_every": 0}, {"start": -1}])
def test_a_window_that_does_not_fit_is_refused(bad: dict[str, int]):
    with pytest.raises(ValueError, match="window"):
        sde_window(0, 10, **bad)


def test_sixty_percent_of_25_steps_are_14():
    steps = trained_steps(25, fraction=0.6, generator=torch.Generator().manual_seed(0))
    assert len(steps) == len(set(steps)) == 14 and steps == sorted(steps)


@given(n_steps=st.integers(2, 60), fraction=st.floats(0.01, 1.0), seed=st.integers(0, 99))
def test_the_last_step_is_never_trained(n_steps: int, fraction: float, seed: int):
    steps = trained_steps(n_steps, fraction=fraction, generator=torch.Generator().manual_seed(seed))
    assert len(steps) >= 1 and min(steps) >= 0 and max(steps) < n_steps - 1


def test_every_trainable_step_is_drawn_sooner_or_later():
    generator = torch.Generator().manual_seed(0)
    drawn = {i for _ in range(50) for i in trained_steps(10, fraction=0.3, generator=generator)}
    assert drawn == set(range(9))


def test_all_steps_and_windows_need_no_generator():
    assert trained_steps(5, fraction=1.0) == [0, 1, 2, 3]
    assert trained_steps(10, window=range(2, 5)) == [2, 3, 4]


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"fraction": 0.5, "window": range(2)},
        {"fraction": 0.5},
        {"fraction": 0.0},
        {"fraction": 1.1},
        {"window": range(7, 10)},
        {"window": range(0)},
    ],
)
def test_a_choice_of_steps_that_makes_no_sense_is_refused(bad: dict[str, object]):
    with pytest.raises(ValueError):
        trained_steps(10, **bad)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_step_at_levels_that_are_numbers_asks_nothing_of_the_device(name: str) -> None:
    x = torch.empty(SHAPE, device="meta")  # asked for a value, a tensor there raises an error
    mean, std = transition(name, x, x, 0.93, 0.8, 0.5, 0.93)
    assert mean.device == x.device and mean.shape == x.shape
    assert log_prob(mean + std * x, mean, std).shape == SHAPE[:1]
    assert float(std) == float(
        transition(name, torch.zeros(SHAPE), torch.zeros(SHAPE), 0.93, 0.8, 0.5, 0.93)[1]
    )


# Samplers of one's own


def euler(
    x: Tensor, velocity: Tensor, sigma: Level, sigma_next: Level, eta: Any, sigma_max: Any
) -> samplers.Gaussian:
    return x.float() + (sigma_next - sigma) * velocity.float(), eta / 10


def changed(change: Callable[..., Any]) -> samplers.Transition:
    """A sampler that is Euler's with noise, but for what `change` makes of (x, mean, std)."""

    def step(x: Tensor, velocity: Tensor, *others: Any) -> Any:
        return change(x, *euler(x, velocity, *others))

    return samplers.Transition(step)


def in_place(x: Tensor, mean: Tensor, std: Tensor) -> samplers.Gaussian:
    x.zero_()
    return mean, std


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, mean, std: mean, "at sigma 1: ValueError: too many values"),
        (lambda x, mean, std: (mean[:1], std), r"mean of float32 \[3, 4, 2\], gave.*\[1, 4, 2\]"),
        (lambda x, mean, std: (mean.bfloat16(), std), "gave bfloat16"),
        (lambda x, mean, std: (mean * math.nan, std), "a mean that is not finite"),
        (lambda x, mean, std: (mean.detach(), std), "without gradient"),
        (lambda x, mean, std: (mean, float(std)), r"std of float32 \[\] or \[3, 1, 1\], gave float"),
        (lambda x, mean, std: (mean, std.expand_as(x)), r"std of .* gave float32 \[3, 4, 2\]"),
        (lambda x, mean, std: (mean, -std), "a std of -0.08"),
        (lambda x, mean, std: (mean, std * math.inf), "a std of inf"),
        (lambda x, mean, std: (mean + torch.randn(()), std), "another step when it is called again"),
        (in_place, "changes x"),
    ],
)
def test_a_faulty_sampler_is_refused_by_its_check(change: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sampler(changed(change), 0.8)


def test_a_sampler_of_ones_own_passes_with_one_std_or_one_for_each_sample() -> None:
    check_sampler(samplers.Transition(euler), 0.8)
    check_sampler(changed(lambda x, mean, std: (mean, std.expand(len(x), 1, 1))), 0.8)


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("eta", [1e-3, 1.0])
def test_every_stochastic_sampler_of_the_package_passes_its_check(name: str, eta: float) -> None:
    check_sampler(SAMPLERS[name], eta)
