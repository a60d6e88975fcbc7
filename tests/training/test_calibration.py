"""Calibrated TDW from the doctor's file to a run, and what is refused once the base is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import status
from customized_grpo.config import Config, load_config
from customized_grpo.errors import UserError
from customized_grpo.training import trainer
from customized_grpo.training.calibration import calibration_notes, check_calibration, refuse_calibration
from customized_grpo.training.identity import differing_settings

Recipe = Callable[..., Config]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the doctor writes for the smallest recipe, with the smallest settings."""
    file = tmp_path_factory.mktemp("calibrated") / "weights.json"
    small = ["--prompts", "2", "--branch-prompts", "2", "--continuations", "3", "--calibrate", str(file)]
    assert status("doctor", "toybox-smoke", "data.subjects=64", "train.group_size=4", *small) == 0
    return file


def calibrated(path: Path, *overrides: str) -> Config:
    return load_config("toybox-smoke", ["schedule.name=calibrated", f"schedule.path={path}", *overrides])


def changed(file: Path, folder: Path, **changes: Any) -> Path:
    content = json.loads(file.read_text())
    content["calibration"] |= changes
    other = folder / "other.json"
    other.write_text(json.dumps(content))
    return other


def levels(file: Path) -> torch.Tensor:
    return torch.tensor(json.loads(file.read_text())["calibration"]["sigmas"])


def test_the_file_says_where_its_weights_come_from(weights: Path) -> None:
    content = json.loads(weights.read_text())
    calibration, provenance = content["calibration"], content["provenance"]
    assert len(calibration["prompt_weights"]) == 4 and len(calibration["sigmas"]) == 5
    assert all(0.1 <= weight <= 0.9 for weight in calibration["prompt_weights"])
    assert (calibration["sampler"], calibration["eta"], calibration["noisy_steps"]) == (
        "dance",
        0.8,
        [0, 1, 2],
    )
    assert provenance["recipe"] == "toybox-smoke data.subjects=64 train.group_size=4"
    # in four steps the judged scene never differs among continuations, which leaves the rewards
    assert provenance["scores"] == {"prompt": "reward/prompt", "identity": "reward/identity"}
    assert provenance["judges"] and [reward["name"] for reward in provenance["rewards"]] == ["dino", "clip_t"]
    assert len(provenance["prompts"]) == 2 and provenance["continuations"] == 3
    assert {"date", "customized_grpo", "recipe_hash", "base", "seed", "points"} <= provenance.keys()
    assert content["interval"].keys() == {"low", "high", "level"}


def test_a_run_takes_the_weights_and_shows_them(weights: Path, tmp_path: Path) -> None:
    config = calibrated(weights, "train.iterations=1", f"run.dir={tmp_path / 'run'}")
    assert trainer.train(config) == 0
    shown = json.loads((tmp_path / "run" / "schedule.json").read_text())["prompt_weights"]
    assert shown == pytest.approx(json.loads(weights.read_text())["calibration"]["prompt_weights"])


def test_another_shift_is_refused_before_a_run_begins(weights: Path, tmp_path: Path) -> None:
    config = calibrated(weights, "model.mu=2.5", f"run.dir={tmp_path / 'run'}")
    with pytest.raises(UserError, match="another shift: sigma") as refusal:
        trainer.train(config)
    assert "schedule.name=tdw --calibrate" in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_another_guidance_is_refused_and_a_file_that_says_none_is_not(weights: Path, tmp_path: Path) -> None:
    sigmas = levels(weights)
    check_calibration(calibrated(weights), sigmas)
    with pytest.raises(UserError, match=r"measured with model.guidance 2.5, not 3.5") as refusal:
        check_calibration(calibrated(weights, "model.guidance=3.5"), sigmas)
    assert "schedule.name=tdw --calibrate" in str(refusal.value.hint)
    older = changed(weights, tmp_path, guidance=None)
    check_calibration(calibrated(older, "model.guidance=3.5"), sigmas)


def test_another_base_is_refused_unless_it_is_meant(weights: Path, tmp_path: Path) -> None:
    other = changed(weights, tmp_path, base="of another model")
    sigmas = levels(weights)
    with pytest.raises(UserError, match="measured on another base") as refusal:
        check_calibration(calibrated(other), sigmas)
    assert "schedule.any_base=true" in str(refusal.value)
    meant = calibrated(other, "schedule.any_base=true")
    check_calibration(meant, sigmas)
    ((name, note),) = calibration_notes(meant)
    assert name == "calibration" and "as schedule.any_base allows" in note


def test_a_base_that_cannot_be_compared_is_said(weights: Path, tmp_path: Path, recipe: Recipe) -> None:
    unknown = calibrated(changed(weights, tmp_path, base=None))
    check_calibration(unknown, levels(weights))
    ((_, note),) = calibration_notes(unknown)
    assert "could not be checked" in note
    assert calibration_notes(calibrated(weights)) == calibration_notes(recipe()) == []


def test_a_resumed_run_compares_the_weights(weights: Path, tmp_path: Path) -> None:
    other = changed(weights, tmp_path, prompt_weights=[0.2, 0.3, 0.4, 0.5])
    keys = [difference.key for difference in differing_settings(calibrated(weights), calibrated(other), {})]
    assert {"schedule.options.path", "schedule.options.measured.prompt_weights.0"} <= set(keys)


def test_a_window_that_moves_is_not_calibrated(recipe: Recipe) -> None:
    refuse_calibration(recipe("rollout.sde_window={size: 2, shift_every: 0, start: 0}"))
    with pytest.raises(UserError, match="rollout.sde_window moves"):
        refuse_calibration(recipe("rollout.sde_window={size: 2, shift_every: 5, start: 0}"))


def test_weights_need_curves(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "weights.json"
    assert status("doctor", "toybox-smoke", "--points", "0", "--calibrate", str(file)) == 2
    assert "--points 0 leaves out" in capsys.readouterr().err and not file.exists()


@pytest.mark.slow
def test_where_the_scene_is_large_and_the_detail_small_judges_see_the_premise_and_leaking_rewards_do_not(
    tmp_path: Path,
) -> None:
    """In the world of vectors each reward is paid for the other's decision, and counts it as its own."""
    measured = ["--prompts", "2", "--points", "5", "--calibrate", str(tmp_path / "weights.json")]
    assert status("doctor", "two-scale", *measured, "--json", str(tmp_path / "found.json")) == 0
    decisions = json.loads((tmp_path / "found.json").read_text())["decisions"]
    assert decisions["judge_difference"]["low"] > 0
    assert decisions["difference"]["high"] < 0
    content = json.loads((tmp_path / "weights.json").read_text())
    assert content["provenance"]["scores"]["prompt"] == "judge/prompt"
    weights = content["calibration"]["prompt_weights"]
    assert sum(weights[:4]) / 4 > 0.6 and sum(weights[5:9]) / 4 < 0.4
