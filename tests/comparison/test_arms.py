from __future__ import annotations

from pathlib import Path

import pytest

from customized_grpo.comparison.arms import Arm, arm_set_names, calibrated, load_arms
from customized_grpo.config import load_config
from customized_grpo.errors import UserError

TWO = """
arms:
  - {name: one, label: One, role: front, overrides: {advantage.name: linear}}
  - {name: two, label: Two, role: method, control: one, overrides: {advantage.gamma: 0.1}}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "arms.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", arm_set_names())
def test_every_shipped_arm_is_a_valid_recipe_of_its_own(name: str) -> None:
    arms, _ = calibrated(load_arms(name), None)
    recipes = [load_config("toybox", [*arm.settings(), "run.dir=runs/x"]) for arm in arms]
    assert len({recipe.model_dump_json() for recipe in recipes}) == len(arms)
    assert all(arm.note.endswith(".") for arm in arms)


@pytest.mark.parametrize("name", arm_set_names())
def test_the_front_has_seven_constant_weights_with_the_papers_two(name: str) -> None:
    front = [load_config("toybox", arm.settings()) for arm in load_arms(name) if arm.role == "front"]
    weights = [recipe.schedule.options["prompt_weight"] for recipe in front]
    assert len(set(weights)) >= 7 and {0.5, 0.6} <= set(weights)  # 1:1 and 1:1.5
    assert {(recipe.advantage.name, recipe.schedule.name) for recipe in front} == {("linear", "constant")}


def test_the_full_set_has_what_the_claim_calls_for() -> None:
    recipes = {
        arm.name: load_config("toybox", arm.settings()) for arm in calibrated(load_arms("full"), None)[0]
    }
    pairs = {(r.advantage.name, r.schedule.name) for r in recipes.values()}
    assert {
        ("sars", "tdw"), ("sars", "constant"), ("linear", "tdw"), ("linear", "inverse_tdw"),
        ("linear", "shuffled_tdw"), ("linear", "tdw_mean"), ("sars_matched", "tdw"),
        ("sars_matched", "constant"), ("sars_no_flip", "tdw"), ("sars_recentred", "tdw"),
    } <= pairs  # fmt: skip
    rules = {recipe.advantage.name for recipe in recipes.values()}
    assert {"sum_then_normalise", "gdpo", "gd2po_hard", "gd2po_snr", "min", "identity_gate", "cme"} <= rules
    gammas = {
        r.advantage.options["gamma"]
        for r in recipes.values()
        if (r.advantage.name, r.schedule.name) == ("sars", "tdw")
    }
    assert gammas == {0.1, 0.2, 0.4, 0.7, 1.0}
    assert any(recipe.train.kl_weight > 0 for recipe in recipes.values())
    assert any(recipe.train.ratio_normalisation for recipe in recipes.values())


def test_core_is_a_part_of_full() -> None:
    full = {arm.name: arm.overrides for arm in load_arms("full")}
    assert {arm.name: arm.overrides for arm in load_arms("core")}.items() <= full.items()


def test_values_reach_the_recipe_with_their_types(tmp_path: Path) -> None:
    arm = Arm(
        name="a", label="a", role="rival", overrides={"train.ratio_normalisation": True, "model.mu": None}
    )
    assert arm.settings() == ["train.ratio_normalisation=true", "model.mu=null"]


def test_only_keeps_the_named_arms_and_drops_a_control_that_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, TWO)
    assert [arm.control for arm in load_arms(path)] == [None, "one"]
    assert [(arm.name, arm.control) for arm in load_arms(path, ["two"])] == [("two", None)]
    with pytest.raises(UserError, match=r"no such arm: three\nThere are one, two."):
        load_arms(path, ["three"])


def test_arms_of_calibrated_weights_take_the_file_that_is_given(tmp_path: Path) -> None:
    loaded = load_arms("full")
    arms, left_out = calibrated(loaded, tmp_path / "weights.json")
    changed = {arm.name: arm for arm, before in zip(arms, loaded, strict=True) if arm != before}
    assert set(changed) == {"tdw-calibrated", "tdw-calibrated-sars"} and not left_out
    assert {arm.overrides["schedule.path"] for arm in changed.values()} == {str(tmp_path / "weights.json")}
    own = TWO.replace("{advantage.gamma: 0.1}", "{schedule.name: calibrated, schedule.path: mine.json}")
    arms, _ = calibrated(load_arms(write(tmp_path, own)), tmp_path / "weights.json")
    assert arms[1].overrides["schedule.path"] == "mine.json"


def test_arms_of_calibrated_weights_are_left_out_by_name_without_a_file(tmp_path: Path) -> None:
    loaded = load_arms("full")
    arms, left_out = calibrated(loaded, None)
    assert left_out == ["tdw-calibrated", "tdw-calibrated-sars"]
    assert [arm.name for arm in loaded if arm not in arms] == left_out
    text = TWO.replace("{advantage.name: linear}", "{schedule.name: calibrated}")
    arms, _ = calibrated(load_arms(write(tmp_path, text)), None)
    assert [(arm.name, arm.control) for arm in arms] == [("two", None)]  # nothing is left to compare it with
    with pytest.raises(
        UserError, match=r"tdw-calibrated: no calibrated weights are given\n.*--calibrate FILE"
    ):
        calibrated(load_arms("full", ["tdw-calibrated"]), None)


def test_all_mistakes_are_listed_at_once(tmp_path: Path) -> None:
    text = """
arms:
  - {name: one, label: One, role: front, overrides: {advantage.name: linear}}
  - {name: one, label: One, role: boss, overrides: {}}
  - {name: ../up, label: Up, role: rival, overrides: {advantage.name: min}, colour: red}
  - {name: last, label: Last, role: rival, control: nobody, overrides: {advantage.name: min}}
"""
    with pytest.raises(UserError) as caught:
        load_arms(write(tmp_path, text))
    for part in (
        "'one': role",
        "'one': overrides",
        "'../up': name",
        "'../up': colour",
        "'nobody' is no other arm",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["", "arms: []", "arms: {one: two}", "arms: [a]\nseeds: 5", "arms: ["])
def test_what_is_no_list_of_arms_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="arms"):
        load_arms(write(tmp_path, text))


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'one': the name is given twice"):
        load_arms(write(tmp_path, TWO.replace("name: two", "name: one").replace("control: one, ", "")))


def test_an_unknown_set_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="core, full"):
        load_arms("cor")
