"""Statistics and sentences of comparisons whose truth is known, because they are made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from customized_grpo.comparison.analysis import analyse
from customized_grpo.comparison.definitions import IDENTITY, PROMPT
from customized_grpo.comparison.front import Front
from customized_grpo.comparison.tables import Tables
from customized_grpo.comparison.verdicts import verdicts
from customized_grpo.statistics.crossed import crossed_interval, holm
from customized_grpo.statistics.degradation import REWARD

SUBJECTS, SEEDS = 30, 5
BASE = {IDENTITY: 0.5, PROMPT: 0.55, REWARD: 0.3}


def arm(name: str, role: str = "rival", control: str | None = None) -> dict[str, Any]:
    return {"name": name, "label": name.upper(), "role": role, "control": control, "overrides": {}}


def make_runs(
    points: Mapping[str, tuple[float, float]],
    *,
    noise: float = 0.002,
    degraded: Sequence[str] = (),
    seeds: Mapping[str, Sequence[int]] | None = None,
) -> list[dict[str, Any]]:
    """Return finished runs whose arms end at (identity, prompt) and share the luck of seeds and subjects."""
    rng = np.random.default_rng(0)
    subject, seed_effect = 0.1 * rng.standard_normal(SUBJECTS), 0.02 * rng.standard_normal(SEEDS)
    runs = []
    for name, (identity, prompt) in points.items():
        for seed in (seeds or {}).get(name, range(SEEDS)):
            level = {IDENTITY: identity, PROMPT: prompt, REWARD: 0.4}
            after = {
                metric: (value + seed_effect[seed] + subject + noise * rng.standard_normal(SUBJECTS)).tolist()
                for metric, value in level.items()
            }
            before = {metric: (value + subject).tolist() for metric, value in BASE.items()}
            train = [
                {"iteration": i + 1, "advantage/conflict": 0.5, "advantage/both_positive": 0.3,
                 "advantage/both_negative": 0.2, "advantage/conflict_null": 0.49,
                 "reward/prompt_group_std": 0.1 - 0.01 * i, "reward/identity_group_std": None}
                for i in range(6)
            ]  # fmt: skip
            runs.append(
                {"arm": name, "seed": seed, "state": "finished", "before": before, "after": after,
                 "train": train, "degraded": name in degraded, "alarms": []}
            )  # fmt: skip
    return runs


FRONT = {"w3": (0.7, 0.5), "w5": (0.6, 0.6), "w7": (0.5, 0.7)}
FRONT_ARMS = [arm(name, "front") for name in FRONT]


def test_final_and_change_are_crossed_intervals_of_the_tables() -> None:
    runs = make_runs(FRONT)
    entry = analyse(FRONT_ARMS, runs)["arms"][0]
    table = np.array([run["after"][IDENTITY] for run in runs if run["arm"] == "w3"])
    base = np.array(runs[0]["before"][IDENTITY])
    assert entry["final"][IDENTITY] == crossed_interval(table).to_json()
    assert entry["change"][IDENTITY] == crossed_interval(table - base).to_json()
    assert entry["change"][IDENTITY]["low"] > 0 > entry["change"][PROMPT]["high"]


def test_arms_are_paired_so_that_shared_luck_cancels() -> None:
    tables = Tables.from_runs(make_runs({"a": (0.61, 0.6), "b": (0.60, 0.6)}))
    paired = tables.paired("a", "b", IDENTITY)
    assert paired is not None and paired.shape == (SEEDS, SUBJECTS)
    inside = crossed_interval(paired)
    alone = crossed_interval(tables.arms["a"].after[IDENTITY])
    assert inside.low > 0.008 and inside.high < 0.012  # the difference is .010
    assert alone.high - alone.low > 20 * (inside.high - inside.low)


def test_pairs_are_matched_by_seed_not_by_position() -> None:
    runs = make_runs({"a": (0.6, 0.6), "b": (0.6, 0.6)}, noise=0.0, seeds={"a": [4, 0, 2], "b": [1, 2, 4]})
    paired = Tables.from_runs(runs).paired("a", "b", PROMPT)
    assert paired is not None and paired.shape == (2, SUBJECTS)
    np.testing.assert_allclose(paired, 0, atol=1e-12)
    assert Tables.from_runs(runs).paired("a", "c", PROMPT) is None


def test_p_values_are_holms_over_all_arms_and_both_measures() -> None:
    arms = [arm("a", control="c"), arm("b", control="c"), arm("c")]
    points = {"a": (0.601, 0.6), "b": (0.6, 0.602), "c": (0.6, 0.6)}
    entries = analyse(arms, make_runs(points, noise=0.03))["arms"]
    tests = [entry["against_control"][metric] for entry in entries[:2] for metric in (IDENTITY, PROMPT)]
    assert [test["p_holm"] for test in tests] == holm([test["p"] for test in tests])
    assert any(test["p_holm"] > test["p"] for test in tests)
    assert entries[2]["against_control"] is None


@pytest.mark.parametrize(
    ("point", "margin"),
    [
        ((0.65, 0.65), 0.05),
        ((0.55, 0.55), -0.05),
        ((0.71, 0.3), 0.01),
        ((0.62, 0.6), 0.02),
        ((0.4, 0.6), -0.1),
    ],
)
def test_margin_against_values_worked_out_by_hand(point: tuple[float, float], margin: float) -> None:
    runs = make_runs({**FRONT, "x": point}, noise=0.0)
    outside = Front(list(FRONT), Tables.from_runs(runs)).outside("x")
    assert outside is not None
    assert outside["margin"]["mean"] == pytest.approx(margin)
    assert outside["margin"]["low"] == pytest.approx(margin)  # what arms share does not blur the margin
    assert outside["outside"] == (margin > 0) and outside["share"] == float(margin > 0)


def test_margins_of_two_methods_differ_by_what_lies_between_them() -> None:
    points = {**FRONT, "far": (0.67, 0.66), "near": (0.62, 0.62), "inside": (0.58, 0.58)}
    arms = [*FRONT_ARMS, arm("far", "method"), arm("near", "method"), arm("inside", "method"), arm("rival")]
    differences = analyse(arms, make_runs({**points, "rival": (0.9, 0.9)}, noise=0.0))["margin_differences"]
    found = {(entry["arm"], entry["other"]): entry for entry in differences}
    # by hand: "far" has to lose .07 of both qualities until w5 dominates it, "near" .02, "inside" -.02
    expected = {("far", "near"): 0.07 - 0.02, ("far", "inside"): 0.07 + 0.02, ("near", "inside"): 0.02 + 0.02}
    assert found.keys() == expected.keys()
    for pair, difference in expected.items():
        assert found[pair]["mean"] == pytest.approx(difference)
        assert found[pair]["low"] == pytest.approx(difference)  # the luck that both share cancels


def test_margins_of_two_methods_are_compared_on_their_common_seeds() -> None:
    runs = make_runs({**FRONT, "x": (0.65, 0.65), "y": (0.62, 0.62)}, seeds={"y": [2, 4]})
    front = Front(list(FRONT), Tables.from_runs(runs))
    common = Front(list(FRONT), Tables.from_runs([run for run in runs if run["seed"] in (2, 4)]))
    assert front.difference("x", "y") == common.difference("x", "y") != None  # noqa: E711
    assert front.difference("x", "w5") is None


def test_front_and_hypervolume_against_values_worked_out_by_hand() -> None:
    dominated = {**FRONT, "w1": (0.55, 0.55)}
    front = Front(list(dominated), Tables.from_runs(make_runs(dominated, noise=0.0)))
    found = front.to_json()
    assert found is not None and found["arms"] == ["w7", "w5", "w3"]
    shift = np.mean([np.mean(run["after"][IDENTITY]) for run in make_runs({"w": (0.0, 0.0)}, noise=0.0)])
    high, middle, low = 0.7 + shift, 0.6 + shift, 0.5 + shift
    area = low * high + (middle - low) * middle + (high - middle) * low
    assert found["hypervolume"]["mean"] == pytest.approx(area)
    assert found["hypervolume"]["low"] < area < found["hypervolume"]["high"]


def test_the_base_belongs_to_the_front() -> None:
    runs = make_runs({"w2": (0.7, 0.3), "w8": (0.3, 0.7), "timid": (0.48, 0.54)}, noise=0.0)
    front = Front(["w2", "w8"], Tables.from_runs(runs))
    found, timid = front.to_json(), front.outside("timid")
    assert found is not None and found["arms"] == ["w8", "base", "w2"]
    assert timid is not None and not timid["outside"] and timid["margin"]["mean"] < 0


def test_hypervolume_gain_is_the_corner_a_point_adds_and_nothing_inside() -> None:
    runs = make_runs({**FRONT, "out": (0.65, 0.65), "in": (0.55, 0.55)}, noise=0.0)
    gains = {g["arm"]: g for g in analyse([*FRONT_ARMS, arm("out"), arm("in")], runs)["hypervolume_gain"]}
    assert gains["out"]["mean"] == pytest.approx(0.10 * 0.05 + 0.05 * 0.15)
    assert gains["in"] == {"arm": "in", "mean": 0.0, "low": 0.0, "high": 0.0}
    assert set(gains) == {"out", "in"}


def test_a_margin_within_the_noise_of_seeds_is_not_outside() -> None:
    rng = np.random.default_rng(1)
    runs = make_runs({**FRONT, "x": (0.61, 0.61)}, noise=0.0)
    for run in runs:
        luck = 0.05 * rng.standard_normal()
        run["after"] = {metric: [value + luck for value in row] for metric, row in run["after"].items()}
    outside = Front(list(FRONT), Tables.from_runs(runs)).outside("x")
    assert outside is not None and not outside["outside"]
    assert outside["margin"]["low"] < 0 < outside["margin"]["high"]


def test_an_arm_without_finished_runs_is_empty_and_the_rest_is_there() -> None:
    runs = make_runs(FRONT)
    runs.append({"arm": "late", "seed": 0, "state": "missing", "train": [], "degraded": None, "alarms": []})
    analysis = analyse([*FRONT_ARMS, arm("late", "method", "w5")], runs)
    late = analysis["arms"][-1]
    assert late == {
        "name": "late", "runs": 0, "final": None, "change": None, "degraded": 0, "outside_front": None,
        "against_control": None, "quadrants": None, "group_std": None,
    }  # fmt: skip
    assert analysis["arms"][0]["runs"] == SEEDS


def test_nothing_finished_is_an_empty_analysis() -> None:
    analysis = analyse(FRONT_ARMS, [])
    assert analysis["front"] is None and analysis["base"] == {} and analysis["hypervolume_gain"] == []
    assert verdicts(FRONT_ARMS, [], analysis) == []


def test_quadrants_are_means_and_group_std_is_of_the_last_third() -> None:
    analysis = analyse(FRONT_ARMS, make_runs(FRONT))
    entry = analysis["arms"][0]
    assert entry["quadrants"] == pytest.approx(
        {"conflict": 0.5, "both_positive": 0.3, "both_negative": 0.2, "null": 0.49}
    )
    assert entry["group_std"] is None  # identity was never measured
    runs = make_runs(FRONT)
    for run in runs:
        for record in run["train"]:
            record["reward/identity_group_std"] = 0.2
    spread = analyse(FRONT_ARMS, runs)["arms"][0]["group_std"]
    assert spread == pytest.approx({"prompt": (0.06 + 0.05) / 2, "identity": 0.2})


# Sentences


def sentences(points: Mapping[str, tuple[float, float]], **how: Any) -> str:
    arms = [*FRONT_ARMS, arm("method", "method", "w5")]
    runs = make_runs({**FRONT, **points}, **how)
    return "\n".join(verdicts(arms, runs, analyse(arms, runs)))


def test_a_cure_is_outside_and_without_degradation() -> None:
    text = sentences({"method": (0.65, 0.65)}, degraded=["w3"])
    assert "METHOD is a cure: it lies outside the front of naive GRPO (margin +0.050 [" in text
    assert "Competitive degradation shows in runs of: W3 in 5 of 5. No run of W5, W7, METHOD does." in text
    assert "against its control, W5: identity +0.050" in text and "beyond chance" in text


def test_outside_but_degraded_is_no_cure() -> None:
    text = sentences({"method": (0.65, 0.65)}, degraded=["method"])
    assert "but some of its runs degraded: no cure" in text and "is a cure" not in text


def test_inside_and_undecided_are_said_as_such() -> None:
    assert "lies inside the front" in sentences({"method": (0.55, 0.55)})
    undecided = sentences({"method": (0.6, 0.6)}, noise=0.05)
    assert "cannot be told from the front" in undecided and "no cure shown" in undecided
    assert "identity" in undecided and "not beyond chance" in undecided
    assert "No run shows competitive degradation." in undecided


def test_one_seed_is_no_cure_however_far_outside() -> None:
    one = {name: [0] for name in (*FRONT, "method")}
    text = sentences({"method": (0.65, 0.65)}, seeds=one)
    assert "METHOD was run with one seed: margin +0.050" in text and "is a cure" not in text


def test_one_seed_that_an_arm_shares_with_the_others_is_one_seed_however_many_it_has() -> None:
    # as when results of other machines are joined: the front was trained with another set of seeds
    text = sentences({"method": (0.65, 0.65)}, seeds={name: [0] for name in FRONT})
    assert "METHOD shares one seed with the front: margin +0.050" in text and "is a cure" not in text
    assert "W5: identity +0.050" in text and "on one seed that both have" in text
    whole = sentences({"method": (0.65, 0.65)}, seeds={name: [0, 3] for name in FRONT})
    assert "METHOD is a cure" in whole and "one seed" not in whole


def test_an_unfinished_comparison_is_called_provisional() -> None:
    arms = FRONT_ARMS
    runs = [
        *make_runs(FRONT),
        {"arm": "w3", "seed": 9, "state": "unfinished", "train": [], "degraded": None, "alarms": []},
    ]
    assert verdicts(arms, runs, analyse(arms, runs))[0] == "Provisional: 15 of 16 runs are finished."


def test_alarms_at_the_end_of_runs_lead_the_verdicts() -> None:
    runs = make_runs(FRONT)
    first = runs[0]["arm"]
    of_first = [run for run in runs if run["arm"] == first]
    of_first[0]["alarms"] = ["diversity"]
    of_first[1]["alarms"] = ["copy_score", "diversity"]
    sentence, *rest = verdicts(FRONT_ARMS, runs, analyse(FRONT_ARMS, runs))
    assert f"in 2 of {len(of_first)} (copy_score, diversity)" in sentence and rest
