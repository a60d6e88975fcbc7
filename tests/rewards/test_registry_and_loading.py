from __future__ import annotations

import dataclasses
import io
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from scipy.stats import kstest

import tiny_rewards as tiny
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards import (
    REWARDS,
    FunctionReward,
    Reward,
    RewardOptions,
    ScoringBatch,
    build_reward,
    check_rewards,
    register,
    register_with,
    registry,
    score_all,
)
from customized_grpo.rewards.dino import DinoReward
from customized_grpo.rewards.registry import scoring_settings

OWN = """
import torch
from customized_grpo.rewards import FunctionReward, ScoringBatch

def brightness(batch: ScoringBatch) -> torch.Tensor:
    return batch.images.mean(dim=(1, 2, 3))

finished = FunctionReward("brightness", "quality", brightness)

class Scaled:
    name, kind = "scaled", "quality"
    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
    def score(self, batch: ScoringBatch) -> torch.Tensor:
        return self.scale * brightness(batch)
    def fingerprint(self) -> dict:
        return {"scale": self.scale}

class OddKind(Scaled):
    kind = "beauty"

class NoName(Scaled):
    name = " "

class NumberedName(Scaled):
    name = 5

class Unsaved(Scaled):
    def fingerprint(self) -> dict:
        return {"bins": torch.zeros(2)}

class NotANumber(Scaled):
    def fingerprint(self) -> dict:
        return {"threshold": float("nan")}

class Unprinted(Scaled):
    def fingerprint(self) -> dict:
        pass

class NoReward:
    pass

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "my_own_rewards.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_own_rewards"


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no reward 'dinoo' \\(did you mean dino\\?\\)") as caught:
        build_reward(RewardConfig(name="dinoo"))
    assert "known: dino, dino_seg, " in str(caught.value)


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="already"):
        register("dino")(REWARDS["dino"].build)


def test_a_registered_reward_is_built_with_its_settings(tmp_path: Path) -> None:
    folder = str(tiny.save_dino(tmp_path))
    reward = build_reward(RewardConfig(name="dino", path=folder, segment="none"))
    assert isinstance(reward, DinoReward) and reward.segment == "none" and reward.kind == "identity"


def test_options_of_a_reward_without_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="speed: there is no such option\nclip_t has no options"):
        build_reward(RewardConfig(name="clip_t", path=str(tmp_path), options={"speed": 3}))


class SpeedOptions(RewardOptions):
    speed: float
    """How fast, in m/s."""
    sizes: tuple[int, ...] = (1,)
    """Sizes."""


@pytest.fixture
def speedy(monkeypatch: pytest.MonkeyPatch) -> list[SpeedOptions]:
    """Register the reward `speedy`; returns the options its factory gets."""
    seen: list[SpeedOptions] = []
    monkeypatch.setattr(registry, "REWARDS", dict(REWARDS))

    @register_with("speedy", SpeedOptions)
    def build(config: RewardConfig, device: torch.device, options: SpeedOptions) -> Reward:
        seen.append(options)
        return FunctionReward("speedy", "quality", lambda batch: batch.images.mean(dim=(1, 2, 3)))

    return seen


def test_a_registered_reward_gets_its_options_typed(speedy: list[SpeedOptions]) -> None:
    build_reward(RewardConfig(name="speedy", options={"speed": 3, "sizes": [4, 5]}))
    assert speedy == [SpeedOptions(speed=3.0, sizes=(4, 5))]


def test_all_wrong_options_of_all_rewards_are_listed_before_anything_is_built(
    speedy: list[SpeedOptions],
) -> None:
    wrong = RewardConfig(name="speedy", options={"sped": 3, "sizes": [1, "two"]})
    right = RewardConfig(name="speedy", options={"speed": 1.0})
    with pytest.raises(UserError) as caught:
        check_rewards([right, wrong, RewardConfig(name="dino", options={"x": 1}), RewardConfig(name="dinoo")])
    for text in (
        "sped: there is no such option; did you mean speed?",
        "speed: must be given",
        "sizes.1: Input should be a valid integer",
        "x: there is no such option",
        "no reward 'dinoo' (did you mean dino?)",
        "speed: How fast, in m/s.",
    ):
        assert text in str(caught.value)
    assert speedy == []


@pytest.mark.parametrize("value", ["3", True, None, [1]])
def test_options_are_not_converted(speedy: list[SpeedOptions], value: Any) -> None:
    with pytest.raises(UserError, match="speed: Input should be a valid number"):
        build_reward(RewardConfig(name="speedy", options={"speed": value}))


@pytest.mark.parametrize(
    ("name", "options", "scale"), [("finished", {}, 1), ("Scaled", {}, 1), ("Scaled", {"scale": 2.0}, 2)]
)
def test_a_reward_of_ones_own_is_found_by_dotted_path(
    own: str, name: str, options: dict[str, Any], scale: float
) -> None:
    batch = tiny.make_batch(2)
    reward = build_reward(RewardConfig(name=f"{own}:{name}", options=options))
    assert torch.allclose(score_all([reward], batch)[:, 0], scale * batch.images.mean(dim=(1, 2, 3)))


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("nowhere", {}, "no 'nowhere'"),
        ("finished", {"scale": 1.0}, "takes no options"),
        ("Scaled", {"sale": 1.0}, "cannot be made.*sale"),
        ("NoReward", {}, "without name, kind"),
        ("OddKind", {}, "kind 'beauty'; it must be one of prompt, identity, quality"),
        ("NoName", {}, "has the name ' '; it must be a text"),
        ("NumberedName", {}, "has the name 5; it must be a text"),
        ("Unsaved", {}, "fingerprint of reward 'scaled' cannot be saved: TypeError: .*Tensor"),
        ("NotANumber", {}, "fingerprint of reward 'scaled' cannot be saved: ValueError: Out of range"),
        ("Unprinted", {}, "fingerprint of reward 'scaled' must be a dict, not NoneType"),
        ("number", {}, "neither a reward"),
    ],
)
def test_what_is_no_reward_is_refused_with_the_reason(
    own: str, name: str, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text):
        build_reward(RewardConfig(name=f"{own}:{name}", options=options))


def test_a_module_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(UserError, match="no_such_module_at_all.*could not be imported") as caught:
        build_reward(RewardConfig(name="no_such_module_at_all:Thing"))
    assert "PYTHONPATH" in str(caught.value)


def test_loading_says_nothing(tmp_path: Path) -> None:
    folders = {"dino": tiny.save_dino(tmp_path / "dino"), "clip_t": tiny.save_clip(tmp_path / "clip")}
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output), warnings.catch_warnings(action="error"):
        for name, folder in folders.items():
            build_reward(RewardConfig(name=name, path=str(folder)))
    assert output.getvalue() == ""


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere.*no such folder"):
        build_reward(RewardConfig(name="dino", path=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("missing", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    (tiny.save_dino(tmp_path) / missing).unlink()
    with pytest.raises(UserError, match=missing):
        build_reward(RewardConfig(name="dino", path=str(tmp_path)))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    file = tiny.save_dino(tmp_path) / "model.safetensors"
    torch.save(load_file(file), tmp_path / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(UserError, match="model.safetensors"):
        build_reward(RewardConfig(name="dino", path=str(tmp_path)))


def test_missing_weights_are_refused_rather_than_drawn_at_random(tmp_path: Path) -> None:
    file = tiny.save_dino(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["layernorm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing: layernorm\.weight"):
        build_reward(RewardConfig(name="dino", path=str(tmp_path)))


def test_a_model_of_another_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is a 'clip' model, 'dinov2' is needed"):
        build_reward(RewardConfig(name="dino", path=str(tiny.save_clip(tmp_path))))


def test_a_hub_that_cannot_be_reached_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="cannot be reached") as caught:
        build_reward(RewardConfig(name="dino"))
    assert "hf download facebook/dinov2-base" in str(caught.value)


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("text", ["src/customized_grpo/rewards/README.md", "docs/rewards.md"])
def test_the_texts_own_reward_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "my_rewards.py").write_text((ROOT / text).read_text().split("```python\n")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    reward = build_reward(RewardConfig(name="my_rewards:colourful"))
    assert score_all([reward], tiny.make_batch(2)).isfinite().all()


def test_every_registered_reward_is_in_the_table() -> None:
    rows = [
        line for line in (ROOT / "docs" / "rewards.md").read_text().splitlines() if line.startswith("| `")
    ]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(REWARDS)


def test_noise_is_gaussian_depends_on_image_and_prompt_alone_and_changes_the_fingerprint(own: str) -> None:
    config = {"name": f"{own}:Scaled", "options": {"scale": 0.0}}
    exact, noisy = build_reward(RewardConfig(**config)), build_reward(RewardConfig(**config, noise=0.3))
    batch = make_noise_batch(400)
    scores = noisy.score(batch)
    assert exact.score(batch).abs().max() == 0
    assert scores.mean().abs() < 0.05 and 0.27 < scores.std() < 0.33
    assert kstest(scores / 0.3, "norm").pvalue > 0.01
    assert torch.equal(noisy.score(batch.select([7, 3])), scores[[7, 3]])
    reworded = dataclasses.replace(batch, prompts=["another prompt"] * len(batch))
    assert not torch.isclose(noisy.score(reworded), scores).any()
    assert (noisy.name, noisy.kind) == (exact.name, exact.kind)
    assert noisy.fingerprint() == {**exact.fingerprint(), "noise": 0.3}


def make_noise_batch(samples: int) -> ScoringBatch:
    images = torch.rand(samples, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return ScoringBatch(images, ["a toy"] * samples, [[]] * samples, None, None, [{}] * samples)


@pytest.mark.parametrize(
    ("leaves", "reason"), [(False, "FileNotFoundError: weights.bin"), (True, "SystemExit: 0")]
)
def test_a_reward_of_ones_own_that_cannot_be_made_is_one_message(leaves: bool, reason: str) -> None:
    with pytest.raises(UserError, match=f"could not be made: {reason}.*own_rewards.py, line"):
        build_reward(RewardConfig(name="own_rewards:Unmade", options={"leaves": leaves}))


def test_settings_that_two_sides_compare_name_what_scores_depend_on_and_no_folder() -> None:
    here = scoring_settings(RewardConfig(name="clip_t", path="/mine/clip-large", options={}))
    there = scoring_settings(RewardConfig(name="clip_t", path="/data/models/clip-large", weight=2.0))
    assert here == there == {"noise": "0", "path": "clip-large"}
    assert scoring_settings(RewardConfig(name="clip_t", path="owner/clip"))["path"] == "owner/clip"
    # an option that is written out as its default is no other option
    written = scoring_settings(RewardConfig(name="two_scale_prompt", options={"leak": 0.0}))
    assert written == scoring_settings(RewardConfig(name="two_scale_prompt"))
    other = scoring_settings(RewardConfig(name="two_scale_prompt", options={"leak": 0.5}))
    assert {key for key in other if other[key] != written[key]} == {"options.leak"}
    secret = scoring_settings(RewardConfig(name="own_rewards:Own", options={"key": "hunter2"}))
    assert "hunter2" not in repr(secret) and "options.key" in secret
    assert scoring_settings(RewardConfig(name="dino", segment="none"))["segment"] == "none"
