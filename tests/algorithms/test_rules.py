from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from customized_grpo.algorithms.advantages import group_advantages, valid_samples
from customized_grpo.algorithms.rules import RULES, Batch, Rule, combine
from customized_grpo.algorithms.sars import sars_bonus
from customized_grpo.algorithms.trials import check_rule

WITHOUT_WEIGHTS = {"min", "max", "identity_gate", "cme"}
"""Rules on which the weights have no effect."""

ARGUMENTS = {"rewards", "group_size", "valid", "adv_clip"}
"""Arguments of `combine`; any other keyword below is an option of the rule."""

G = 12
NAN = math.nan


def rewards(groups: int = 3, k: int = 2, seed: int = 0, size: int = G) -> torch.Tensor:
    return torch.randn(groups * size, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def advantages(groups: int = 3, seed: int = 0) -> torch.Tensor:
    return group_advantages(rewards(groups, seed=seed), G)


def pair(prompt: float, identity: float) -> torch.Tensor:
    return torch.tensor([[prompt, identity]], dtype=torch.float64)


HALVES = torch.tensor([0.5, 0.5], dtype=torch.float64)


def apply(name: str, advantages: torch.Tensor, weights: torch.Tensor, **settings: Any) -> torch.Tensor:
    """Combine by a rule's name, its options among the settings."""
    options = {key: value for key, value in settings.items() if key not in ARGUMENTS}
    arguments = {key: value for key, value in settings.items() if key in ARGUMENTS}
    return combine(RULES[name](**options), advantages, weights, **arguments)


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
        return float(apply("sars", pair(p, q), weights, gamma=0.4))

    s = -1 if prompt <= 0 and identity <= 0 else 1
    sech2 = 1 / math.cosh(prompt * identity) ** 2
    slope_p = (value(prompt + h, identity) - value(prompt - h, identity)) / (2 * h)
    slope_id = (value(prompt, identity + h) - value(prompt, identity - h)) / (2 * h)
    assert slope_p == pytest.approx(w_p + 0.4 * s * identity * sech2, abs=1e-7)
    assert slope_id == pytest.approx(1 - w_p + 0.4 * s * prompt * sech2, abs=1e-7)


def test_gamma_zero_is_the_linear_rule():
    a = advantages()
    assert torch.equal(apply("sars", a, HALVES, gamma=0.0), apply("linear", a, HALVES))


def test_sars_is_symmetric_at_equal_weights():
    a = advantages()
    torch.testing.assert_close(apply("sars", a, HALVES), apply("sars", a.flip(1), HALVES))


@pytest.mark.parametrize("weight", [0.3, 0.5, 0.7])
def test_sars_is_monotone_in_each_reward_up_to_the_stated_gamma(weight: float):
    bound = (G - 1) / math.sqrt(G)
    weights = torch.tensor([weight, 1 - weight], dtype=torch.float64)
    line = torch.linspace(-bound, bound, 401, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1)
    for gamma, monotone in ((min(weight, 1 - weight) / bound, True), (3.0, False)):
        value = apply("sars", grid.reshape(-1, 2), weights, gamma=gamma).reshape(401, 401)
        rises = bool((value.diff(dim=0) >= -1e-12).all() and (value.diff(dim=1) >= -1e-12).all())
        assert rises is monotone


def test_the_clamp_never_binds_at_group_size_12_and_binds_beyond():
    a = advantages(groups=50)
    assert torch.equal(apply("sars", a, HALVES), apply("sars", a, HALVES, adv_clip=math.inf))
    assert float(apply("sars", pair(20, 20), HALVES)) == 5.0
    assert float(apply("sars", pair(-20, -20), HALVES)) == -5.0


def test_sars_without_flip_excuses_what_is_low_on_both():
    low, high = pair(-1, -1), pair(1, 1)
    assert apply("sars_no_flip", low, HALVES) > apply("sars", low, HALVES)
    assert apply("sars_no_flip", high, HALVES) == apply("sars", high, HALVES)


def test_recentred_sars_has_zero_group_mean_and_plain_sars_has_not():
    a = advantages(groups=200)
    centred = apply("sars_recentred", a, HALVES, group_size=G).reshape(-1, G).mean(1)
    torch.testing.assert_close(centred, torch.zeros_like(centred), atol=1e-12, rtol=0)
    plain = apply("sars", advantages(groups=20_000), HALVES, gamma=1.0)
    assert float(plain.mean()) == pytest.approx(-0.209, abs=0.004)


# --- the other rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_every_rule_gives_one_finite_advantage_a_sample(name: str):
    actual = apply(name, advantages(), HALVES, rewards=rewards(), group_size=G)
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
        apply(name, x, HALVES, rewards=r, group_size=G, valid=valid)
        for x in (group_advantages(r, G), a, tampered)
    ]
    assert results[0].isfinite().all() and results[0][4] == 0
    assert torch.equal(results[1], results[2])


@pytest.mark.parametrize("name", sorted(set(RULES) - {"gdpo"}))
def test_every_rule_but_the_batch_whitening_treats_groups_apart(name: str):
    r, a = rewards(), advantages()
    whole = apply(name, a, HALVES, rewards=r, group_size=G)
    part = apply(name, a[:G], HALVES, rewards=r[:G], group_size=G)
    torch.testing.assert_close(whole[:G], part)


@pytest.mark.parametrize("name", sorted(WITHOUT_WEIGHTS))
def test_weight_free_rules_do_not_depend_on_the_weights(name: str):
    inputs = {"rewards": rewards(), "group_size": G}
    other = torch.tensor([0.9, 0.1])
    assert torch.equal(
        apply(name, advantages(), HALVES, **inputs), apply(name, advantages(), other, **inputs)
    )


@pytest.mark.parametrize("name", sorted(set(RULES) - WITHOUT_WEIGHTS))
def test_all_other_rules_follow_the_weights(name: str):
    inputs = {"rewards": rewards(), "group_size": G}
    other = torch.tensor([0.9, 0.1])
    assert not torch.allclose(
        apply(name, advantages(), HALVES, **inputs), apply(name, advantages(), other, **inputs)
    )


def test_weights_may_differ_by_row():
    a = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    actual = apply("linear", a, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert actual.tolist() == [1.0, 3.0]


def test_sum_then_normalise_is_the_z_score_of_the_weighted_sum():
    r, weights = rewards(), torch.tensor([0.3, 0.7], dtype=torch.float64)
    expected = group_advantages(r @ weights, G)[:, 0]
    torch.testing.assert_close(
        apply("sum_then_normalise", advantages(), weights, rewards=r, group_size=G), expected
    )


def test_sum_then_normalise_lets_the_larger_scale_win_and_linear_does_not():
    r = rewards() * torch.tensor([1.0, 1000.0])
    a = group_advantages(r, G)
    summed = apply("sum_then_normalise", a, HALVES, rewards=r, group_size=G)
    torch.testing.assert_close(summed, a[:, 1], atol=0.01, rtol=0)
    assert not torch.allclose(apply("linear", a, HALVES), a[:, 1], atol=0.1)


def test_gdpo_has_zero_mean_and_unit_std_over_the_batch():
    actual = apply("gdpo", advantages(), HALVES, adv_clip=math.inf)
    assert float(actual.mean()) == pytest.approx(0, abs=1e-12)
    assert float(actual.std()) == pytest.approx(1, abs=1e-6)


def test_gd2po_hard_drops_conflict_and_scales_by_the_share_kept():
    a = torch.tensor([[1.0, 1.0], [1.0, -2.0], [-1.0, -3.0], [-1.0, 2.0]])
    assert apply("gd2po_hard", a, HALVES.float(), group_size=4).tolist() == [0.5, 0.0, -1.0, 0.0]
    assert apply("gd2po_hard", a, HALVES.float(), reweight=False).tolist() == [1.0, 0.0, -2.0, 0.0]


def test_gd2po_snr_drops_only_what_nearly_cancels():
    a = torch.tensor([[1.0, -1.2], [1.0, -3.0], [2.0, 2.0], [0.0, 0.0]])
    # ratios .2 / 2.2 = .09 (dropped), 2 / 4 = .5, 1, and no signal
    assert apply("gd2po_snr", a, HALVES.float(), reweight=False).tolist() == [0.0, -1.0, 2.0, 0.0]
    scaled = apply("gd2po_snr", a, HALVES.float(), group_size=4)
    torch.testing.assert_close(scaled, torch.tensor([0.0, -0.75, 1.5, 0.0]))


def test_min_and_max_are_what_they_say():
    a = advantages()
    assert torch.equal(apply("min", a, HALVES), a.amin(1))
    assert torch.equal(apply("max", a, HALVES), a.amax(1))


@pytest.mark.parametrize("name", ["harmonic", "softplus_product"])
@given(a=st.floats(-4, 4), b=st.floats(-4, 4), step=st.floats(0.01, 1), w=st.floats(0.1, 0.9))
def test_generalised_means_rise_in_both_and_stay_between(
    name: str, a: float, b: float, step: float, w: float
):
    weights = torch.tensor([w, 1 - w], dtype=torch.float64)
    value = float(apply(name, pair(a, b), weights))
    assert float(apply(name, pair(a + step, b), weights)) > value
    assert float(apply(name, pair(a, b + step), weights)) > value
    assert min(a, b) - 1e-9 <= value <= max(a, b) + 1e-9
    assert float(apply(name, pair(a, a), weights)) == pytest.approx(a, abs=1e-9)


def test_harmonic_and_softplus_product_equal_their_formulas():
    p, q = math.log1p(math.exp(1.0)), math.log1p(math.exp(-0.5))
    harmonic = 1 / (0.3 / p + 0.7 / q)
    product = p**0.3 * q**0.7
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    assert float(apply("harmonic", pair(1, -0.5), weights)) == pytest.approx(math.log(math.expm1(harmonic)))
    assert float(apply("softplus_product", pair(1, -0.5), weights)) == pytest.approx(
        math.log(math.expm1(product))
    )


def test_identity_gate_charges_only_the_shortfall():
    r = torch.tensor([[1.0, 0.9], [2.0, 0.8], [3.0, 0.5], [2.5, 0.7]], dtype=torch.float64)
    score = torch.tensor([1.0, 2.0, 3.0 - 5 * 0.2**2, 2.5], dtype=torch.float64)
    actual = apply("identity_gate", r, HALVES, rewards=r, group_size=4, tau=0.7)
    torch.testing.assert_close(actual, group_advantages(score, 4)[:, 0])


def test_cme_pays_identity_as_a_bonus_on_the_prompt():
    r = torch.tensor([[0.8, 0.5], [0.4, 1.0], [-0.2, 0.9], [0.8, -0.3]], dtype=torch.float64)
    score = torch.tensor([0.8 * 0.65, 0.4 * 0.9, 0.0, 0.8 * 0.4], dtype=torch.float64)
    actual = apply("cme", r, HALVES, rewards=r, group_size=4, base=0.4, bonus=0.5)
    torch.testing.assert_close(actual, group_advantages(score, 4)[:, 0])


# --- the registry -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_an_option_the_rule_does_not_have_is_an_error(name: str):
    with pytest.raises(ValidationError, match="gama"):
        apply(name, advantages(), HALVES, gama=0.4)


def test_the_options_of_the_rules_are_these():
    options = {name: tuple(rule.model_fields) for name, rule in RULES.items()}
    assert {name: fields for name, fields in options.items() if fields} == {
        "sars": ("gamma",),
        "sars_no_flip": ("gamma",),
        "sars_recentred": ("gamma",),
        "sars_matched": ("gamma", "correlation"),
        "gd2po_hard": ("reweight",),
        "gd2po_snr": ("snr_threshold", "reweight"),
        "identity_gate": ("tau", "penalty"),
        "cme": ("base", "bonus"),
    }


@pytest.mark.parametrize("name", ["sum_then_normalise", "identity_gate", "cme"])
def test_a_rule_on_raw_rewards_says_so_when_there_are_none(name: str):
    with pytest.raises(ValueError, match="pass rewards"):
        apply(name, advantages(), HALVES, group_size=G)


@pytest.mark.parametrize(
    "name", ["sum_then_normalise", "sars_recentred", "sars_matched", "gd2po_hard", "identity_gate", "cme"]
)
def test_a_rule_on_groups_says_so_when_the_size_is_missing(name: str):
    with pytest.raises(ValueError, match="pass group_size"):
        apply(name, advantages(), HALVES, rewards=rewards())


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("sars", {"gamma": -0.1}),
        ("sars", {"gamma": NAN}),
        ("gd2po_snr", {"snr_threshold": 1.5}),
        ("identity_gate", {"penalty": -1.0}),
        ("linear", {"adv_clip": 0.0}),
    ],
)
def test_options_out_of_range_are_refused(name: str, bad: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(bad))):
        apply(name, advantages(), HALVES, rewards=rewards(), group_size=G, **bad)


def test_three_rewards_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match="by_kind"):
        apply("sars", torch.zeros(4, 3), torch.ones(3))


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="weights"):
        apply("sars", torch.zeros(4, 2), torch.ones(4))


class IdentityOnly(Rule):
    """A rule of somebody's own."""

    sign: float = 1.0

    def __call__(self, batch: Batch) -> torch.Tensor:
        return self.sign * batch.pair[1]


def test_a_rule_of_ones_own_is_a_subclass():
    a = advantages()
    assert torch.equal(combine(IdentityOnly(sign=-1.0), a, HALVES), -a[:, 1])


class OneNumber(IdentityOnly):
    def __call__(self, batch: Batch) -> torch.Tensor:
        return batch.pair[1].mean()


class NotFinite(IdentityOnly):
    def __call__(self, batch: Batch) -> torch.Tensor:
        return batch.pair[1] * NAN


class Raising(IdentityOnly):
    def __call__(self, batch: Batch) -> torch.Tensor:
        raise KeyError("prompt")


class NotFiniteLate(IdentityOnly):
    def __call__(self, batch: Batch) -> torch.Tensor:
        return batch.weighted_sum() * (NAN if batch.weights[0, 0] < 0.3 else 1.0)


class InPlace(IdentityOnly):
    def __call__(self, batch: Batch) -> torch.Tensor:
        batch.advantages.mul_(0.5)
        return batch.weighted_sum()


class RewardsInPlace(IdentityOnly):
    def __call__(self, batch: Batch) -> torch.Tensor:
        batch.raw_rewards().clamp_(max=0.5)
        return batch.weighted_sum()


class Drawing(IdentityOnly):
    def __call__(self, batch: Batch) -> torch.Tensor:
        return torch.randn(len(batch.advantages))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (OneNumber(), r"must return \[6\], returned \[\]"),
        (NotFinite(), "not finite"),
        (NotFiniteLate(), "not finite"),
        (Raising(), "KeyError: 'prompt'"),
        (InPlace(), "changes the batch"),
        (RewardsInPlace(), "changes the batch"),
        (Drawing(), "other advantages when it is called again"),
        (RULES["sars_matched"](), "groups of 4 and more, not of 3"),
    ],
)
def test_a_faulty_rule_is_refused_by_its_check(rule: Rule, message: str):
    with pytest.raises(ValueError, match=message):
        check_rule(rule, 3)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_of_the_package_passes_its_check(name: str):
    check_rule(RULES[name](), 12)
