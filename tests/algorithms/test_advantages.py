from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.algorithms.advantages import (
    RULES,
    WEIGHT_FREE_RULES,
    Batch,
    by_kind,
    combine,
    group_advantages,
    valid_samples,
)
from customized_grpo.algorithms.registry import option_names
from customized_grpo.algorithms.sars import sars_bonus

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


def test_rewards_of_a_kind_are_averaged_by_weight_in_the_order_prompt_identity():
    a = torch.tensor([[1.0, 2.0, 4.0]])
    actual = by_kind(a, ["identity", "prompt", "identity"], [3.0, 5.0, 1.0])
    torch.testing.assert_close(actual, torch.tensor([[2.0, (3 * 1 + 4) / 4]]))


@pytest.mark.parametrize(
    ("kinds", "weights", "message"),
    [
        (["prompt", "prompt"], [1, 1], "no identity"),
        (["prompt", "identity"], [1, 0], "no identity"),
        (["prompt", "style"], [1, 1], "unknown reward kind 'style'"),
        (["prompt", "identity"], [1, -1], ">= 0"),
        (["prompt"], [1], "must be"),
    ],
)
def test_kinds_that_cannot_be_reduced_are_refused(kinds: list[str], weights: list[float], message: str):
    with pytest.raises(ValueError, match=message):
        by_kind(torch.ones(4, 2), kinds, weights)


# --- sars ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "identity", "sign"),
    [
        (1, 2, 1),
        (-1, 2, -1),
        (1, -2, -1),
        (-1, -2, -1),
        (0, 2, 0),
        (2, 0, 0),
        (0, -2, 0),
        (-2, 0, 0),
        (0, 0, 0),
    ],
)
def test_sign_of_the_bonus_in_each_quadrant_and_on_the_axes(prompt: float, identity: float, sign: int):
    bonus = float(sars_bonus(torch.tensor([float(prompt)]), torch.tensor([float(identity)]), 0.4))
    assert bonus == pytest.approx(sign * 0.4 * math.tanh(2) if sign else 0.0)


@given(st.floats(-4, 4), st.floats(-4, 4), st.floats(0, 2))
def test_the_bonus_is_bounded_by_gamma(prompt: float, identity: float, gamma: float):
    bonus = sars_bonus(*pair(prompt, identity).T, gamma)
    assert abs(float(bonus)) <= gamma


def test_the_bonus_is_continuous_across_the_axes():
    for p, q in [(1e-9, -2.0), (1e-9, 2.0), (-2.0, 1e-9), (2.0, 1e-9)]:
        above = sars_bonus(*pair(p, q).T, 0.4)
        below = sars_bonus(
            *(pair(p, q) * torch.tensor([1 if abs(p) > 1 else -1, 1 if abs(q) > 1 else -1])).T, 0.4
        )
        torch.testing.assert_close(above, below, atol=1e-8, rtol=0)


@pytest.mark.parametrize(("prompt", "identity"), [(0.7, 1.1), (-0.7, 1.1), (0.7, -1.1), (-0.7, -1.1)])
def test_slopes_of_sars_equal_the_formula_in_each_quadrant(prompt: float, identity: float):
    w_p, h = 0.6, 1e-6
    weights = torch.tensor([w_p, 1 - w_p], dtype=torch.float64)

    def value(p: float, q: float) -> float:
        return float(combine("sars", pair(p, q), weights, gamma=0.4))

    s = -1 if prompt <= 0 and identity <= 0 else 1
    sech2 = 1 / math.cosh(prompt * identity) ** 2
    slope_p = (value(prompt + h, identity) - value(prompt - h, identity)) / (2 * h)
    slope_id = (value(prompt, identity + h) - value(prompt, identity - h)) / (2 * h)
    assert slope_p == pytest.approx(w_p + 0.4 * s * identity * sech2, abs=1e-7)
    assert slope_id == pytest.approx(1 - w_p + 0.4 * s * prompt * sech2, abs=1e-7)


def test_gamma_zero_is_the_linear_rule():
    a = advantages()
    assert torch.equal(combine("sars", a, HALVES, gamma=0.0), combine("linear", a, HALVES))


def test_sars_is_symmetric_at_equal_weights():
    a = advantages()
    torch.testing.assert_close(combine("sars", a, HALVES), combine("sars", a.flip(1), HALVES))


@pytest.mark.parametrize("weight", [0.3, 0.5, 0.7])
def test_sars_is_monotone_in_each_reward_up_to_the_stated_gamma(weight: float):
    bound = (G - 1) / math.sqrt(G)
    weights = torch.tensor([weight, 1 - weight], dtype=torch.float64)
    line = torch.linspace(-bound, bound, 401, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)
    for gamma, monotone in ((min(weight, 1 - weight) / bound, True), (3.0, False)):
        value = combine("sars", grid.reshape(-1, 2), weights, gamma=gamma).reshape(401, 401)
        rises = bool((value.diff(dim=0) >= -1e-12).all() and (value.diff(dim=1) >= -1e-12).all())
        assert rises is monotone


def test_the_clamp_never_binds_at_group_size_12_and_binds_beyond():
    a = advantages(groups=50)
    assert torch.equal(combine("sars", a, HALVES), combine("sars", a, HALVES, adv_clip=math.inf))
    assert float(combine("sars", pair(20, 20), HALVES)) == 5.0
    assert float(combine("sars", pair(-20, -20), HALVES)) == -5.0


def test_sars_without_flip_excuses_what_is_low_on_both():
    low, high = pair(-1, -1), pair(1, 1)
    assert combine("sars_no_flip", low, HALVES) > combine("sars", low, HALVES)
    assert combine("sars_no_flip", high, HALVES) == combine("sars", high, HALVES)


def test_recentred_sars_has_zero_group_mean_and_plain_sars_has_not():
    a = advantages(groups=200)
    centred = combine("sars_recentred", a, HALVES, group_size=G).reshape(-1, G).mean(1)
    torch.testing.assert_close(centred, torch.zeros_like(centred), atol=1e-12, rtol=0)
    plain = combine("sars", advantages(groups=20_000), HALVES, gamma=1.0)
    assert float(plain.mean()) == pytest.approx(-0.209, abs=0.004)


# --- the other rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_every_rule_gives_one_finite_advantage_a_sample(name: str):
    actual = combine(name, advantages(), HALVES, rewards=rewards(), group_size=G)
    assert actual.shape == (3 * G,)
    assert actual.isfinite().all()
    assert actual.std() > 0.1


@pytest.mark.parametrize("name", RULES)
def test_every_rule_gives_zero_to_invalid_samples_and_ignores_what_they_hold(name: str):
    r, a = rewards(), advantages()
    r[4] = NAN
    valid = valid_samples(r, G)
    tampered = a.clone()
    tampered[4] = 3.0
    results = [
        combine(name, x, HALVES, rewards=r, group_size=G, valid=valid)
        for x in (group_advantages(r, G), a, tampered)
    ]
    assert results[0].isfinite().all() and results[0][4] == 0
    assert torch.equal(results[1], results[2])


@pytest.mark.parametrize("name", sorted(set(RULES) - {"gdpo"}))
def test_every_rule_but_the_batch_whitening_treats_groups_apart(name: str):
    r, a = rewards(), advantages()
    whole = combine(name, a, HALVES, rewards=r, group_size=G)
    part = combine(name, a[:G], HALVES, rewards=r[:G], group_size=G)
    torch.testing.assert_close(whole[:G], part)


@pytest.mark.parametrize("name", sorted(WEIGHT_FREE_RULES))
def test_weight_free_rules_do_not_depend_on_the_weights(name: str):
    inputs = {"rewards": rewards(), "group_size": G}
    other = torch.tensor([0.9, 0.1])
    assert torch.equal(
        combine(name, advantages(), HALVES, **inputs), combine(name, advantages(), other, **inputs)
    )


@pytest.mark.parametrize("name", sorted(set(RULES) - WEIGHT_FREE_RULES))
def test_all_other_rules_follow_the_weights(name: str):
    inputs = {"rewards": rewards(), "group_size": G}
    other = torch.tensor([0.9, 0.1])
    assert not torch.allclose(
        combine(name, advantages(), HALVES, **inputs), combine(name, advantages(), other, **inputs)
    )


def test_weights_may_differ_by_row():
    a = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    actual = combine("linear", a, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert actual.tolist() == [1.0, 3.0]


def test_sum_then_normalise_is_the_z_score_of_the_weighted_sum():
    r, weights = rewards(), torch.tensor([0.3, 0.7], dtype=torch.float64)
    expected = group_advantages(r @ weights, G)[:, 0]
    torch.testing.assert_close(
        combine("sum_then_normalise", advantages(), weights, rewards=r, group_size=G), expected
    )


def test_sum_then_normalise_lets_the_larger_scale_win_and_linear_does_not():
    r = rewards() * torch.tensor([1.0, 1000.0])
    a = group_advantages(r, G)
    summed = combine("sum_then_normalise", a, HALVES, rewards=r, group_size=G)
    torch.testing.assert_close(summed, a[:, 1], atol=0.01, rtol=0)
    assert not torch.allclose(combine("linear", a, HALVES), a[:, 1], atol=0.1)


def test_gdpo_has_zero_mean_and_unit_std_over_the_batch():
    actual = combine("gdpo", advantages(), HALVES, adv_clip=math.inf)
    assert float(actual.mean()) == pytest.approx(0, abs=1e-12)
    assert float(actual.std()) == pytest.approx(1, abs=1e-6)


def test_gd2po_hard_drops_conflict_and_scales_by_the_share_kept():
    a = torch.tensor([[1.0, 1.0], [1.0, -2.0], [-1.0, -3.0], [-1.0, 2.0]])
    assert combine("gd2po_hard", a, HALVES.float(), group_size=4).tolist() == [0.5, 0.0, -1.0, 0.0]
    assert combine("gd2po_hard", a, HALVES.float(), reweight=False).tolist() == [1.0, 0.0, -2.0, 0.0]


def test_gd2po_snr_drops_only_what_nearly_cancels():
    a = torch.tensor([[1.0, -1.2], [1.0, -3.0], [2.0, 2.0], [0.0, 0.0]])
    # ratios .2 / 2.2 = .09 (dropped), 2 / 4 = .5, 1, and no signal
    assert combine("gd2po_snr", a, HALVES.float(), reweight=False).tolist() == [0.0, -1.0, 2.0, 0.0]
    scaled = combine("gd2po_snr", a, HALVES.float(), group_size=4)
    torch.testing.assert_close(scaled, torch.tensor([0.0, -0.75, 1.5, 0.0]))


def test_min_and_max_are_what_they_say():
    a = advantages()
    assert torch.equal(combine("min", a, HALVES), a.amin(1))
    assert torch.equal(combine("max", a, HALVES), a.amax(1))


@pytest.mark.parametrize("name", ["harmonic", "softplus_product"])
@given(a=st.floats(-4, 4), b=st.floats(-4, 4), step=st.floats(0.01, 1), w=st.floats(0.1, 0.9))
def test_generalised_means_rise_in_both_and_stay_between(
    name: str, a: float, b: float, step: float, w: float
):
    weights = torch.tensor([w, 1 - w], dtype=torch.float64)
    value = float(combine(name, pair(a, b), weights))
    assert float(combine(name, pair(a + step, b), weights)) > value
    assert float(combine(name, pair(a, b + step), weights)) > value
    assert min(a, b) - 1e-9 <= value <= max(a, b) + 1e-9
    assert float(combine(name, pair(a, a), weights)) == pytest.approx(a, abs=1e-9)


def test_harmonic_and_softplus_product_equal_their_formulas():
    p, q = math.log1p(math.exp(1.0)), math.log1p(math.exp(-0.5))
    harmonic = 1 / (0.3 / p + 0.7 / q)
    product = p**0.3 * q**0.7
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    assert float(combine("harmonic", pair(1, -0.5), weights)) == pytest.approx(math.log(math.expm1(harmonic)))
    assert float(combine("softplus_product", pair(1, -0.5), weights)) == pytest.approx(
        math.log(math.expm1(product))
    )


def test_identity_gate_charges_only_the_shortfall():
    r = torch.tensor([[1.0, 0.9], [2.0, 0.8], [3.0, 0.5], [2.5, 0.7]], dtype=torch.float64)
    score = torch.tensor([1.0, 2.0, 3.0 - 5 * 0.2**2, 2.5], dtype=torch.float64)
    actual = combine("identity_gate", r, HALVES, rewards=r, group_size=4, tau=0.7)
    torch.testing.assert_close(actual, group_advantages(score, 4)[:, 0])


# --- the registry -------------------------------------------------------------------------------------------


def test_an_unknown_rule_is_an_error_that_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'sars'"):
        combine("sarss", advantages(), HALVES)


@pytest.mark.parametrize("name", RULES)
def test_an_option_the_rule_does_not_have_is_an_error(name: str):
    with pytest.raises(ValueError, match="no option 'gama'"):
        combine(name, advantages(), HALVES, gama=0.4)


def test_the_options_of_the_rules_are_these():
    assert {name: option_names(rule) for name, rule in RULES.items() if option_names(rule)} == {
        "sars": ("gamma",),
        "sars_no_flip": ("gamma",),
        "sars_recentred": ("gamma",),
        "sars_matched": ("gamma", "correlation"),
        "gd2po_hard": ("reweight",),
        "gd2po_snr": ("threshold", "reweight"),
        "identity_gate": ("tau", "penalty"),
    }


@pytest.mark.parametrize("name", ["sum_then_normalise", "identity_gate"])
def test_a_rule_on_raw_rewards_says_so_when_there_are_none(name: str):
    with pytest.raises(ValueError, match="pass rewards"):
        combine(name, advantages(), HALVES, group_size=G)


@pytest.mark.parametrize(
    "name", ["sum_then_normalise", "sars_recentred", "sars_matched", "gd2po_hard", "identity_gate"]
)
def test_a_rule_on_groups_says_so_when_the_size_is_missing(name: str):
    with pytest.raises(ValueError, match="pass group_size"):
        combine(name, advantages(), HALVES, rewards=rewards())


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("sars", {"gamma": -0.1}),
        ("sars", {"gamma": NAN}),
        ("gd2po_snr", {"threshold": 1.5}),
        ("identity_gate", {"penalty": -1.0}),
        ("linear", {"adv_clip": 0.0}),
    ],
)
def test_options_out_of_range_are_refused(name: str, bad: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(bad))):
        combine(name, advantages(), HALVES, rewards=rewards(), group_size=G, **bad)


def test_three_rewards_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match="by_kind"):
        combine("sars", torch.zeros(4, 3), torch.ones(3))


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="weights"):
        combine("sars", torch.zeros(4, 2), torch.ones(4))


def test_a_rule_of_ones_own_is_selectable_by_name(monkeypatch: pytest.MonkeyPatch):
    def identity_only(batch: Batch, *, sign: float = 1.0) -> torch.Tensor:
        return sign * batch.pair[1]

    monkeypatch.setitem(RULES, "identity_only", identity_only)
    a = advantages()
    assert torch.equal(combine("identity_only", a, HALVES, sign=-1.0), -a[:, 1])
