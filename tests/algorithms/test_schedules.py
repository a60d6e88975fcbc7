from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.algorithms.registry import option_names
from customized_grpo.algorithms.samplers import sde_window, trained_steps
from customized_grpo.algorithms.schedules import (
    SCHEDULES,
    progress_of_sigma,
    prompt_weights,
    tdw,
    tdw_of_sigma,
)

T = 25
TABLE = {0: 0.7, 5: 0.7, 6: 0.6843, 8: 0.6328, 10: 0.5, 12: 0.3672, 14: 0.3157, 21: 0.3001, 22: 0.5, 24: 0.5}


def shifted_sigmas(n_steps: int = T, shift: float = 3.0) -> torch.Tensor:
    base = torch.linspace(1, 0, n_steps + 1, dtype=torch.float64)
    return shift * base / (1 + (shift - 1) * base)


def by_index(step: int) -> float:
    """The paper's form, in steps of 25."""
    if step < 6:
        return 0.7
    if step < 22:
        return 0.3 + 0.4 * (1 - 1 / (1 + math.exp(-0.8 * (step - 10))))
    return 0.5


@pytest.mark.parametrize(("step", "weight"), TABLE.items())
def test_tdw_gives_the_table_at_25_steps(step: int, weight: float):
    assert tdw(step / T) == pytest.approx(weight, abs=5e-5)
    assert float(prompt_weights("tdw", T)[step]) == pytest.approx(weight, abs=5e-5)


def test_index_form_equals_progress_form():
    expected = torch.tensor([by_index(i) for i in range(T)])
    torch.testing.assert_close(prompt_weights("tdw", T), expected)


def test_mean_over_the_trained_steps():
    assert float(prompt_weights("tdw", T)[:-1].mean()) == pytest.approx(0.4922, abs=5e-5)


def test_all_three_phases_are_reached_at_any_length():
    for n_steps in (9, 10, 25, 50, 1000):
        weights = prompt_weights("tdw", n_steps)
        assert weights[0] == pytest.approx(0.7) and weights[-1] == 0.5 and weights.min() < 0.35


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_breaks_fall_exactly_on_steps_6_and_22_in_every_dtype(dtype: torch.dtype):
    weights = tdw(torch.arange(T, dtype=dtype) / T)
    assert weights.dtype == dtype
    assert weights[5] == pytest.approx(0.7) and weights[6] < 0.69
    assert weights[21] < 0.31 and weights[22] == 0.5


@given(st.floats(0, 1))
def test_a_float_and_a_tensor_give_the_same(progress: float):
    value = tdw(progress)
    assert isinstance(value, float)
    assert value == float(tdw(torch.tensor([progress], dtype=torch.float64)))
    assert 0.3 <= value <= 0.7


@pytest.mark.parametrize("progress", [-0.01, 1.01, math.nan])
def test_progress_outside_the_trajectory_is_refused(progress: float):
    with pytest.raises(ValueError, match="progress"):
        tdw(progress)
    with pytest.raises(ValueError, match="progress"):
        tdw(torch.tensor([0.5, progress]))


def test_the_constants_of_tdw_are_live():
    default = prompt_weights("tdw", T)
    for option, value in {
        "first_break": 0.1,
        "second_break": 0.7,
        "centre": 0.5,
        "slope": 5.0,
        "early": 0.9,
        "middle": 0.1,
        "late": 0.6,
    }.items():
        assert not torch.equal(prompt_weights("tdw", T, **{option: value}), default), option
        assert not torch.equal(
            tdw_of_sigma(shifted_sigmas()[:-1], shifted_sigmas(), **{option: value}), default
        )


# --- which weight a trained step gets -----------------------------------------------------------------------


@given(seed=st.integers(0, 999), fraction=st.sampled_from([0.3, 0.6, 1.0]))
def test_weights_follow_the_true_step_in_any_subset_and_order(seed: int, fraction: float):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.tensor(trained_steps(T, fraction=fraction, generator=generator))
    visited = steps[torch.randperm(len(steps), generator=generator)]
    weights = prompt_weights("tdw", T)[visited]
    torch.testing.assert_close(weights, torch.tensor([by_index(int(i)) for i in visited]))


@pytest.mark.parametrize("iteration", [0, 100, 10_000])
def test_weights_follow_the_true_step_in_a_window(iteration: int):
    steps = trained_steps(T, window=sde_window(iteration, T))
    expected = torch.tensor([by_index(i) for i in steps])
    torch.testing.assert_close(prompt_weights("tdw", T)[steps], expected)


# --- weights by noise level ---------------------------------------------------------------------------------


def test_at_the_levels_of_the_schedule_sigma_and_step_agree():
    sigmas = shifted_sigmas()
    torch.testing.assert_close(
        progress_of_sigma(sigmas, sigmas), torch.arange(T + 1, dtype=torch.float64) / T
    )
    torch.testing.assert_close(tdw_of_sigma(sigmas[:-1], sigmas).float(), prompt_weights("tdw", T))


def test_between_levels_progress_is_linear_in_sigma():
    sigmas = torch.tensor([1.0, 0.8, 0.2, 0.0])
    assert float(progress_of_sigma(0.5, sigmas)) == pytest.approx(1.5 / 3)
    assert progress_of_sigma(torch.tensor([[0.95], [0.05]]), sigmas).shape == (2, 1)


@given(st.floats(0, 1))
def test_progress_inverts_the_schedule(progress: float):
    sigmas = shifted_sigmas()
    step = min(int(progress * T), T - 1)
    sigma = sigmas[step] + (progress * T - step) * (sigmas[step + 1] - sigmas[step])
    assert float(progress_of_sigma(sigma, sigmas)) == pytest.approx(progress, abs=1e-9)


@pytest.mark.parametrize(
    ("sigma", "sigmas"), [(1.2, [1.0, 0.5, 0.0]), (-0.1, [1.0, 0.5, 0.0]), (0.5, [0.0, 1.0]), (0.5, [0.5])]
)
def test_levels_outside_or_out_of_order_are_refused(sigma: float, sigmas: list[float]):
    with pytest.raises(ValueError):
        progress_of_sigma(sigma, torch.tensor(sigmas))


# --- the other schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n_steps", [2, 10, 25])
def test_every_schedule_gives_one_weight_a_step_within_bounds(name: str, n_steps: int):
    weights = prompt_weights(name, n_steps)
    assert weights.shape == (n_steps,) and weights.dtype == torch.float32
    assert bool(((weights >= 0) & (weights <= 1)).all())
    torch.testing.assert_close(weights + (1 - weights), torch.ones(n_steps))


@pytest.mark.parametrize("name", ["inverse_tdw", "shuffled_tdw", "tdw_mean"])
@pytest.mark.parametrize("n_steps", [10, 25])
def test_controls_share_the_mean_of_tdw_over_the_trained_steps(name: str, n_steps: int):
    expected = prompt_weights("tdw", n_steps)[:-1].mean()
    control = prompt_weights(name, n_steps)
    torch.testing.assert_close(control[:-1].mean(), expected)
    assert not torch.allclose(control, prompt_weights("tdw", n_steps))


def test_inverse_is_the_time_reversal_of_the_trained_steps():
    assert torch.equal(prompt_weights("inverse_tdw", T)[:-1], prompt_weights("tdw", T)[:-1].flip(0))


def test_shuffled_reads_tdw_at_the_permuted_position():
    permutation = [2, 0, 1, 3, 8, 7, 6, 5, 4]
    weights = prompt_weights("shuffled_tdw", 10, permutation=permutation)
    assert torch.equal(weights[:-1], prompt_weights("tdw", 10)[permutation])
    assert weights[-1] == 0.5


def test_shuffled_is_fixed_by_its_seed():
    first, again, other = (prompt_weights("shuffled_tdw", T, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("permutation", [[0, 1, 2], list(range(10)), [0] * 9])
def test_what_is_no_permutation_of_the_trained_steps_is_refused(permutation: list[int]):
    with pytest.raises(ValueError, match="permutation"):
        prompt_weights("shuffled_tdw", 10, permutation=permutation)


def test_constant_and_linear_take_their_ends():
    assert prompt_weights("constant", 4, prompt_weight=0.4).tolist() == pytest.approx([0.4] * 4)
    assert prompt_weights("linear", 4, start=0.8, end=0.4).tolist() == pytest.approx([0.8, 0.7, 0.6, 0.5])


# --- the registry -------------------------------------------------------------------------------------------


def test_an_unknown_schedule_is_an_error_that_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'tdw_mean'"):
        prompt_weights("tdw_men", T)


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_option_the_schedule_does_not_have_is_an_error(name: str):
    with pytest.raises(ValueError, match="no option 'breaks'"):
        prompt_weights(name, T, breaks=3)


def test_table_and_function_of_tdw_have_the_same_options():
    assert option_names(SCHEDULES["tdw"]) == option_names(tdw)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("constant", {"prompt_weight": 1.1}),
        ("constant", {"prompt_weight": -0.1}),
        ("constant", {"prompt_weight": math.nan}),
        ("linear", {"start": 1.5}),
        ("linear", {"end": -0.5}),
        ("tdw", {"early": 1.2}),
        ("tdw", {"first_break": 0.9}),
    ],
)
def test_values_out_of_range_are_refused(name: str, options: dict[str, float]):
    with pytest.raises(ValueError):
        prompt_weights(name, T, **options)


def test_a_single_step_has_nothing_to_train():
    with pytest.raises(ValueError, match="at least 2"):
        prompt_weights("tdw", 1)
