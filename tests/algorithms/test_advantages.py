from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.algorithms.advantages import by_kind, group_advantages, informative_groups, valid_samples

G = 12
NAN = math.nan


def rewards(groups: int = 3, k: int = 2, seed: int = 0, size: int = G) -> torch.Tensor:
    return torch.randn(groups * size, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def advantages(groups: int = 3, seed: int = 0) -> torch.Tensor:
    return group_advantages(rewards(groups, seed=seed), G)


def pair(prompt: float, identity: float) -> torch.Tensor:
    return torch.tensor([[prompt, identity]], dtype=torch.float64)


HALVES = torch.tensor([0.5, 0.5], dtype=torch.float64)


# --- group_advantages ---------------------------------------------------------------------------------------


def test_matches_an_independent_numpy_computation():
    r = np.array([0.81, 0.79, 0.90, 0.62, 7.1, 8.4, 6.6, 7.7]).reshape(2, 4)
    expected = (r - r.mean(1, keepdims=True)) / r.std(1, ddof=1, keepdims=True)
    actual = group_advantages(torch.from_numpy(r.reshape(-1)), 4)
    np.testing.assert_allclose(actual[:, 0], expected.reshape(-1), rtol=1e-6)


def test_by_the_batch_a_group_that_hardly_differs_counts_little():
    r = np.array([[0.1, 0.2, 0.3, 0.6], [5.0, 5.1, 5.0, 5.1], [7.0, 7.0, 7.0, 7.0]])
    actual = group_advantages(torch.from_numpy(r.reshape(-1)), 4, scale="global")
    expected = (r - r.mean(1, keepdims=True)) / r.std(ddof=1)
    np.testing.assert_allclose(actual[:, 0], expected.reshape(-1), rtol=1e-6, atol=1e-12)
    assert float(actual[8:].abs().max()) == 0.0


def test_without_a_std_advantages_have_the_units_of_the_reward():
    r = rewards()
    plain = group_advantages(r, G, scale="none").reshape(3, G, 2)
    grouped = r.reshape(3, G, 2)
    torch.testing.assert_close(plain, grouped - grouped.mean(1, keepdim=True))
    assert float(group_advantages(torch.full((G,), 3.0), G, scale="none").abs().max()) == 0.0


@pytest.mark.parametrize("scale", ["global", "none"])
def test_what_is_not_scored_takes_no_part_in_any_std(scale: str):
    r = rewards()
    gaps = r.clone()
    gaps[5, 1] = NAN
    kept = [n for n in range(len(r)) if n != 5]
    actual = group_advantages(gaps, G, scale=scale)
    centred = r[:G, 1][[n for n in range(G) if n != 5]]
    divisor = r[kept, 1].std() if scale == "global" else 1.0
    torch.testing.assert_close(actual[0, 1], (r[0, 1] - centred.mean()) / divisor, rtol=1e-6, atol=0)
    assert float(actual[5, 1]) == 0.0
    torch.testing.assert_close(actual[:, 0], group_advantages(r, G, scale=scale)[:, 0])


def test_golden_vector():
    actual = group_advantages(torch.tensor([1.0, 2.0, 3.0, 6.0]), 4)
    # mean 3, variance (4 + 1 + 0 + 9) / 3
    expected = torch.tensor([-2.0, -1.0, 0.0, 3.0]) / math.sqrt(14 / 3)
    torch.testing.assert_close(actual[:, 0], expected)


def test_sum_is_zero_and_std_is_one_per_group_and_reward():
    grouped = advantages().reshape(3, G, 2)
    torch.testing.assert_close(grouped.sum(1), torch.zeros(3, 2, dtype=torch.float64))
    torch.testing.assert_close(grouped.std(1), torch.ones(3, 2, dtype=torch.float64), rtol=1e-6, atol=0)


@given(scale=st.floats(0.1, 100), shift=st.floats(-100, 100), seed=st.integers(0, 99))
def test_is_invariant_to_the_scale_and_offset_of_each_reward(scale: float, shift: float, seed: int):
    r = rewards(seed=seed)
    moved = r.clone()
    moved[:, 1] = scale * r[:, 1] + shift
    torch.testing.assert_close(group_advantages(moved, G), group_advantages(r, G), rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 99))
def test_permuting_a_group_permutes_its_advantages_alike(seed: int):
    r = rewards(groups=1, seed=seed)
    order = torch.randperm(G, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(group_advantages(r[order], G), group_advantages(r, G)[order])


def test_groups_do_not_touch_each_other():
    r = rewards()
    changed = r.clone()
    changed[G:] = 100 * changed[G:].square()
    assert torch.equal(group_advantages(changed, G)[:G], group_advantages(r, G)[:G])


def test_shards_of_whole_groups_equal_the_whole():
    r = rewards(groups=4).float()
    shards = torch.cat([group_advantages(part, G) for part in r.split(2 * G)])
    assert torch.equal(shards, group_advantages(r, G))


@pytest.mark.parametrize("value", [0.0, 0.3, -7.87, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_constant_group_gives_exactly_zero(value: float, dtype: torch.dtype):
    assert torch.count_nonzero(group_advantages(torch.full((G, 2), value, dtype=dtype), G)) == 0


@pytest.mark.parametrize("noise", [1e-9, 1e-7])
def test_rounding_noise_is_not_blown_up(noise: float):
    r = 0.86 + noise * rewards(groups=1)
    assert torch.count_nonzero(group_advantages(r.float(), G)) == 0
    assert torch.count_nonzero(group_advantages(1e-10 * rewards(groups=1), G)) == 0


def test_a_small_but_real_spread_is_kept():
    r = 0.86 + 1e-4 * rewards(groups=1)
    assert group_advantages(r.float(), G).abs().max() > 1


@pytest.mark.parametrize("size", [2, 4, 12, 24])
def test_is_bounded_by_g_minus_1_over_root_g(size: int):
    r = torch.zeros(size)
    r[0] = 1
    assert float(group_advantages(r, size).max()) == pytest.approx((size - 1) / math.sqrt(size), rel=1e-5)
    assert group_advantages(rewards(9, size=size), size).abs().max() <= (size - 1) / math.sqrt(size)


def test_the_bound_at_12_is_below_the_clamp():
    assert (12 - 1) / math.sqrt(12) == pytest.approx(3.175, abs=5e-4)


def test_a_nan_reward_masks_that_sample_of_that_reward_only():
    r = rewards(groups=1)
    r[3, 0] = NAN
    actual = group_advantages(r, G)
    kept = [i for i in range(G) if i != 3]
    assert actual[3, 0] == 0
    torch.testing.assert_close(actual[kept, 0], group_advantages(r[kept, 0], G - 1)[:, 0])
    torch.testing.assert_close(actual[:, 1], group_advantages(r[:, 1], G)[:, 0])


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_an_infinite_reward_is_masked_like_nan(bad: float):
    r, masked = rewards(groups=1), rewards(groups=1)
    r[3, 0], masked[3, 0] = bad, NAN
    assert torch.equal(group_advantages(r, G), group_advantages(masked, G))


@pytest.mark.parametrize("known", [0, 1])
def test_fewer_than_two_finite_rewards_give_zeros(known: int):
    r = rewards(groups=2)
    r[known:G, 0] = NAN
    actual = group_advantages(r, G)
    assert torch.count_nonzero(actual[:G, 0]) == 0
    assert torch.count_nonzero(actual[:G, 1]) == G
    assert torch.count_nonzero(actual[G:]) == 2 * G


@pytest.mark.parametrize("size", [1, 0, -2])
def test_a_group_of_one_is_refused(size: int):
    with pytest.raises(ValueError, match="group_size"):
        group_advantages(torch.zeros(4), size)


def test_incomplete_groups_are_refused():
    with pytest.raises(ValueError, match="whole groups"):
        group_advantages(torch.zeros(13, 2), G)


def test_more_than_two_dimensions_are_refused():
    with pytest.raises(ValueError, match="expected"):
        group_advantages(torch.zeros(12, 2, 2), G)


def test_half_precision_rewards_are_normalised_in_float32():
    assert group_advantages(rewards().half(), G).dtype == torch.float32


# --- valid_samples ------------------------------------------------------------------------------------------


def test_a_sample_with_any_bad_reward_is_dropped():
    r = rewards(groups=2)
    r[1, 0], r[5, 1] = NAN, math.inf
    dropped = (~valid_samples(r, G)).nonzero().flatten().tolist()
    assert dropped == [1, 5]


def test_a_group_left_with_one_sample_is_dropped_whole():
    r = rewards(groups=2)
    r[1:G, 0] = NAN
    assert valid_samples(r, G).tolist() == [False] * G + [True] * G


# --- by_kind ------------------------------------------------------------------------------------------------


def test_by_kind_keeps_a_missing_reward_to_its_own_kind() -> None:
    rewards = torch.tensor([[1.0, float("nan")], [2.0, 4.0]])
    prompt, identity = by_kind(rewards, ["prompt", "identity"], [1.0, 1.0]).unbind(1)
    assert prompt.tolist() == [1.0, 2.0]
    assert identity.isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["identity", "prompt", "identity"], [2.0, (3 * 1 + 4) / 4]),
        (["quality", "prompt", "quality"], [2.0, (3 * 1 + 4) / 4]),
        (["quality", "identity", "prompt"], [4.0, 2.0, 1.0]),
        (["identity", "identity", "identity"], [(3 * 1 + 5 * 2 + 4) / 9]),
    ],
)
def test_rewards_of_a_kind_are_averaged_by_weight_in_the_order_of_kinds(
    kinds: list[str], expected: list[float]
):
    actual = by_kind(torch.tensor([[1.0, 2.0, 4.0]]), kinds, [3.0, 5.0, 1.0])
    torch.testing.assert_close(actual, torch.tensor([expected]))


@pytest.mark.parametrize(
    ("kinds", "weights", "message"),
    [
        (["prompt", "identity"], [1, 0], "no identity"),
        (["prompt", "style"], [1, 1], "unknown reward kind 'style'"),
        (["prompt", "identity"], [1, -1], ">= 0"),
        (["prompt"], [1], "must be"),
    ],
)
def test_kinds_that_cannot_be_reduced_are_refused(kinds: list[str], weights: list[float], message: str):
    with pytest.raises(ValueError, match=message):
        by_kind(torch.ones(4, 2), kinds, weights)


SCORES = st.sampled_from([0.0, 0.25, 0.5, 1000.0, NAN])


@given(
    groups=st.lists(st.lists(st.tuples(SCORES, SCORES), min_size=4, max_size=4), min_size=1, max_size=3),
    largest_std=st.sampled_from([0.0, 0.2, 100.0]),
)
def test_groups_that_teach_are_those_in_which_a_reward_spreads(
    groups: list[list[tuple[float, float]]], largest_std: float
) -> None:
    expected = []
    for group in groups:
        scored = [sample for sample in group if not any(map(math.isnan, sample))]
        spreads = [0.0]
        if len(scored) >= 2:
            spreads = [statistics.stdev(column) for column in zip(*scored, strict=True)]
        expected.append(max(spreads) > largest_std)
    rewards = torch.tensor(groups).flatten(0, 1)
    assert informative_groups(rewards, 4, largest_std=largest_std).tolist() == expected


def test_groups_teach_by_the_rewards_that_they_were_to_get() -> None:
    rewards = torch.tensor([[0.1, NAN], [0.4, NAN], [0.1, 7.0], [0.4, NAN], [NAN, NAN], [NAN, NAN]])
    assert informative_groups(rewards, 2).tolist() == [False, False, False]
    asked = torch.tensor([[True, False]] * 2 + [[True, True]] * 2 + [[False, False]] * 2)
    assert informative_groups(rewards, 2, asked=asked).tolist() == [True, False, False]


def test_rounding_of_a_large_constant_teaches_nothing() -> None:
    rewards = torch.tensor([1000.0, 1000.00006, 1000.0])  # one unit in the last place
    assert rewards[1] != rewards[0] and informative_groups(rewards, 3).tolist() == [False]
    assert informative_groups(rewards - 999, 3).tolist() == [True]
