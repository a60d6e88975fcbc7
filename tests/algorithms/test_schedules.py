from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.algorithms import schedules
from customized_grpo.algorithms.samplers import sde_window, trained_steps
from customized_grpo.algorithms.schedules import SCHEDULES, Schedule, Table, Tdw
from customized_grpo.algorithms.trials import check_schedule

T = 25
TABLE = {0: 0.7, 5: 0.7, 6: 0.6843, 8: 0.6328, 10: 0.5, 12: 0.3672, 14: 0.3157, 21: 0.3001, 22: 0.5, 24: 0.5}


def prompt_weights(name: str, n_steps: int, *, seed: int = 0, **options: Any) -> torch.Tensor:
    """The weights of a schedule by its name; what a schedule needs and the test does not give is made up."""
    if name == "table" and not options:
        options = {"prompt_weights": [step / n_steps for step in range(n_steps)]}
    if name == "calibrated" and not options:
        options = {"path": "weights.json", "measured": measured(n_steps) | {"read_from": "weights.json"}}
    # by the rules of JSON, as a recipe has it: a list may stand for a tuple
    schedule = SCHEDULES[name].model_validate_json(json.dumps(options))
    return schedules.prompt_weights(schedule, n_steps, seed)


def measured(n_steps: int) -> dict[str, Any]:
    """A calibration for a rollout with noise in all steps but the last."""
    return {
        "prompt_weights": [0.9 - 0.8 * step / n_steps for step in range(n_steps)],
        "sampler": "dance",
        "eta": 0.4,
        "sigmas": [1 - step / n_steps for step in range(n_steps + 1)],
        "noisy_steps": list(range(n_steps - 1)),
        "base": "a1b2",
    }


def tdw(progress: float | torch.Tensor) -> torch.Tensor:
    return Tdw().at(torch.as_tensor(progress, dtype=None if torch.is_tensor(progress) else torch.float64))


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


@given(progress=st.floats(0, 1))
def test_tdw_stays_between_its_lowest_and_highest_weight(progress: float):
    assert 0.3 <= float(tdw(progress)) <= 0.7


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


def test_shuffled_reads_tdw_at_a_permuted_position():
    weights = prompt_weights("shuffled_tdw", 10, seed=3)
    table = prompt_weights("tdw", 10)
    assert sorted(weights[:-1].tolist()) == sorted(table[:-1].tolist())
    assert not torch.equal(weights, table)
    assert weights[-1] == table[-1]


def test_shuffled_is_fixed_by_its_seed():
    first = prompt_weights("shuffled_tdw", T, seed=1)
    again = prompt_weights("shuffled_tdw", T, seed=1)
    other = prompt_weights("shuffled_tdw", T, seed=2)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_constant_and_linear_take_their_ends():
    assert prompt_weights("constant", 4, prompt_weight=0.4).tolist() == pytest.approx([0.4] * 4)
    assert prompt_weights("linear", 4, start=0.8, end=0.4).tolist() == pytest.approx([0.8, 0.7, 0.6, 0.5])


# --- the registry -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_option_the_schedule_does_not_have_is_an_error(name: str):
    with pytest.raises(ValueError, match="breaks"):
        prompt_weights(name, T, breaks=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("constant", {"prompt_weight": 1.1}),
        ("constant", {"prompt_weight": -0.1}),
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


def test_a_table_holds_the_weights_themselves():
    assert prompt_weights("table", 3, prompt_weights=[0.9, 0.4, 0.0]).tolist() == pytest.approx(
        [0.9, 0.4, 0.0]
    )


def test_a_table_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 prompt_weights for 3 steps"):
        check_schedule(Table(prompt_weights=(0.5, 0.5)), 3)


class TooLarge(Schedule):
    def __call__(self, n_steps: int, seed: int) -> torch.Tensor:
        return torch.full((n_steps,), 1.5)


class Raising(Schedule):
    def __call__(self, n_steps: int, seed: int) -> torch.Tensor:
        raise KeyError("early")


class TooLargeLater(Schedule):
    def __call__(self, n_steps: int, seed: int) -> torch.Tensor:
        return torch.full((n_steps,), 0.5 + seed)


class TooLargeBetween(Schedule):
    def __call__(self, n_steps: int, seed: int) -> torch.Tensor:
        return torch.full((n_steps,), 0.5)

    def at_progress(self, progress: torch.Tensor, n_steps: int, seed: int) -> torch.Tensor:
        return 2 * torch.ones_like(progress)


class Drawing(Schedule):
    def __call__(self, n_steps: int, seed: int) -> torch.Tensor:
        return torch.rand(n_steps)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (TooLarge(), "must give 4 weights in"),
        (TooLargeLater(), "must give 4 weights in"),
        (TooLargeBetween(), "must give 4 weights in"),
        (Raising(), "KeyError: 'early'"),
        (Drawing(), "other weights when it is called again with seed 0"),
    ],
)
def test_a_faulty_schedule_is_refused_by_its_check(schedule: Schedule, message: str):
    with pytest.raises(ValueError, match=message):
        check_schedule(schedule, 4)


# Between the steps


def at_progress(name: str, progress: torch.Tensor, n_steps: int = T, seed: int = 0) -> torch.Tensor:
    options: dict[str, Any] = {}
    if name == "table":
        options = {"prompt_weights": [step / n_steps for step in range(n_steps)]}
    if name == "calibrated":
        options = {"path": "weights.json", "measured": measured(n_steps) | {"read_from": "weights.json"}}
    schedule = SCHEDULES[name].model_validate_json(json.dumps(options))
    return schedules.prompt_weights_at(schedule, progress, n_steps, seed)


CONTROLS = ("tdw_mean", "inverse_tdw", "shuffled_tdw")


@pytest.mark.parametrize("n_steps", [2, 10, 25, 49])
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name not in CONTROLS])
def test_at_the_progress_of_a_step_the_weight_is_that_of_the_step(name: str, n_steps: int) -> None:
    progress = torch.arange(n_steps, dtype=torch.float64) / n_steps
    expected = prompt_weights(name, n_steps, seed=3)
    assert torch.equal(at_progress(name, progress, n_steps, seed=3), expected)


@pytest.mark.parametrize("n_steps", [4, 10, 25])
@pytest.mark.parametrize("name", CONTROLS)
def test_over_all_progress_the_controls_of_tdw_have_its_mean_at_any_number_of_steps(
    name: str, n_steps: int
) -> None:
    """By hand: .7 up to .24, .5 from .88 on, and the fall between them, whose integral is a softplus."""
    fall = (math.log1p(math.exp(20 * 0.16)) - math.log1p(math.exp(-20 * 0.48))) / 20
    mean = 0.7 * 0.24 + 0.3 * 0.64 + 0.4 * fall + 0.5 * 0.12
    progress = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    weights = at_progress(name, progress, n_steps, seed=5)
    assert float(weights.double().mean()) == pytest.approx(mean, abs=1e-4)


def test_over_all_progress_the_controls_are_reversed_shuffled_or_constant() -> None:
    progress = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    tdw = at_progress("tdw", progress)
    assert torch.equal(at_progress("inverse_tdw", progress), tdw.flip(0))
    assert len(set(at_progress("tdw_mean", progress).tolist())) == 1
    # 8 parts in another order; another order in another iteration
    one = at_progress("shuffled_tdw", progress, 8, seed=1)
    two = at_progress("shuffled_tdw", progress, 8, seed=2)
    for shuffled in (one, two):
        assert torch.allclose(shuffled.sort().values, tdw.sort().values, atol=1e-6)
        assert not torch.allclose(shuffled, tdw, atol=1e-3)
    assert not torch.equal(one, two)


def test_between_two_steps_tdw_has_its_own_formula() -> None:
    progress = torch.tensor([0.1, 0.43, 0.9], dtype=torch.float64)
    falling = 0.3 + 0.4 / (1 + math.exp(20 * (0.43 - 0.4)))
    assert at_progress("tdw", progress).tolist() == pytest.approx([0.7, falling, 0.5])
    assert at_progress("linear", progress).tolist() == pytest.approx([0.66, 0.528, 0.34])
    assert at_progress("inverse_tdw", 1 - progress).tolist() == pytest.approx([0.7, falling, 0.5])


def test_weights_of_levels_outside_the_trajectory_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        at_progress("constant", torch.tensor([1.0]))
