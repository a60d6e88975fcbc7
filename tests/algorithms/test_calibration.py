"""Measured weights: a recipe that names their file keeps them, and only the rollout they fit takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.algorithms.calibration import Calibration, read_calibration
from customized_grpo.config import Config, config_hash, dump_config, load_config
from customized_grpo.errors import UserError

# what toybox-smoke's rollout is
MEASURED: dict[str, Any] = {
    "prompt_weights": [0.9, 0.6, 0.1, 0.5],
    "sampler": "dance",
    "eta": 0.8,
    "sigmas": [1.0, 0.75, 0.5, 0.25, 0.0],
    "noisy_steps": [0, 1, 2],
    "base": "a1b2",
}


def written(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({"calibration": {**MEASURED, **changes}, "provenance": {"seed": 0}}))
    return path


def recipe(path: Path, *overrides: str) -> Config:
    return load_config("toybox-smoke", ["schedule.name=calibrated", f"schedule.path={path}", *overrides])


def test_a_recipe_keeps_what_the_file_says(tmp_path: Path) -> None:
    file = written(tmp_path / "weights.json")
    config = recipe(file)
    weights = config.schedule.build()(4, 0)
    assert weights.tolist() == MEASURED["prompt_weights"]
    kept = tmp_path / "config.yaml"
    kept.write_text(dump_config(config))
    file.unlink()
    assert load_config(str(kept)) == config, "a run needs the file no more"


def test_another_file_is_read_although_the_recipe_keeps_one(tmp_path: Path) -> None:
    kept = tmp_path / "config.yaml"
    kept.write_text(dump_config(recipe(written(tmp_path / "old.json"))))
    other = written(tmp_path / "new.json", prompt_weights=[0.8, 0.6, 0.1, 0.5])
    config = load_config(str(kept), [f"schedule.path={other}"])
    assert config.schedule.build()(4, 0).tolist()[0] == 0.8


def test_the_weights_and_not_only_their_place_make_the_recipe(tmp_path: Path) -> None:
    file = written(tmp_path / "weights.json")
    before = config_hash(recipe(file))
    assert config_hash(recipe(written(file))) == before
    assert config_hash(recipe(written(file, prompt_weights=[0.8, 0.6, 0.1, 0.5]))) != before


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("rollout.steps=5", "4 steps, not 5"),
        ("rollout.sampler=flow", "the sampler dance, not flow"),
        ("rollout.eta=0.7", "eta 0.8, not 0.7"),
    ],
)
def test_another_rollout_is_refused_with_what_differs_and_the_cure(
    tmp_path: Path, override: str, named: str
) -> None:
    file = written(tmp_path / "weights.json")
    with pytest.raises(UserError) as refusal:
        recipe(file, override)
    text = str(refusal.value)
    assert "1 mistake" in text and f"were measured with {named}; measure them" in text
    assert f"`cgrpo doctor RECIPE schedule.name=tdw --calibrate {file}`" in text


def test_all_that_differs_is_one_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 steps, not 6, the sampler dance, not cps, eta 0.8, not 0.5;"):
        recipe(written(tmp_path / "w.json"), "rollout.steps=6", "rollout.sampler=cps", "rollout.eta=0.5")


def test_steps_that_drew_no_noise_when_measured_are_not_trained(tmp_path: Path) -> None:
    file = written(tmp_path / "weights.json", noisy_steps=[0, 1])
    recipe(file, "rollout.sde_window={size: 2, shift_every: 0, start: 0}")
    for window in ("null", "{size: 2, shift_every: 1, start: 0}"):
        with pytest.raises(UserError, match="no noise in the steps 2;"):
            recipe(file, f"rollout.sde_window={window}")


def test_another_shift_is_found_and_rounding_is_none() -> None:
    calibration = Calibration.model_validate(MEASURED, strict=False)
    assert calibration.other_levels([1.0, 0.75, 0.500001, 0.25, 0.0]) is None
    found = calibration.other_levels([1.0, 0.8, 0.6, 0.3, 0.0])
    assert found == "another shift: sigma 0.500 before step 2, not 0.600"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("not json", "not JSON"),
        ("{}", "holds no calibrated weights"),
        (json.dumps({"calibration": {**MEASURED, "prompt_weights": [0.5, 2]}}), "prompt_weights"),
        (json.dumps({"calibration": {**MEASURED, "colour": 3}}), "colour"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_name(
    tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "weights.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message) as refusal:
        recipe(file)
    assert f"schedule.options.measured: {file}" in str(refusal.value)
    assert f"schedule.name=tdw --calibrate {file}`" in str(refusal.value)


def test_a_folder_or_device_is_not_read(tmp_path: Path) -> None:
    for place in (tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match="not an ordinary file"):
            read_calibration(place)
