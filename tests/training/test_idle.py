"""Settings that change nothing: refused with the setting that does, or said at the start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from customized_grpo.config import Config, load_config
from customized_grpo.config.loading import preset_names
from customized_grpo.errors import UserError
from customized_grpo.rewards.base import FunctionReward
from customized_grpo.training.idle import idle_settings, refuse_idle_settings, refuse_lone_weights
from customized_grpo.training.parts import check_judge_configs

Recipe = Callable[..., Config]


def rewards(*kinds: Any) -> list[FunctionReward]:
    return [FunctionReward(f"r{k}", kind, torch.zeros_like) for k, kind in enumerate(kinds)]  # type: ignore[arg-type]


def entries(*weights: float) -> str:
    listed = ", ".join(f"{{name: r{k}, weight: {weight}}}" for k, weight in enumerate(weights))
    return f"rewards=[{listed}]"


@pytest.mark.parametrize(
    ("kinds", "weights", "settings", "messages", "hint"),
    [
        (
            ["identity", "prompt"],
            [1, 2],
            (),
            ["rewards.1.weight=2 changes nothing", "r1"],
            "schedule={name: con",
        ),
        (
            ["identity", "quality"],
            [1, 3],
            (),
            ["rewards.1.weight=3 changes nothing"],
            "advantage.quality_weight",
        ),
        (["identity"], [0.5], (), ["rewards.0.weight=0.5 changes nothing"], "Leave it out."),
        (
            ["identity", "prompt"],
            [2, 2],
            ("advantage.quality_weight=1",),
            ["rewards.0.weight", "rewards.1.weight", "no reward is of kind quality"],
            "add a reward of kind quality",
        ),
        (["quality"], [1], ("advantage.quality_weight=0",), ["counts in full"], "prompt or identity"),
    ],
)
def test_a_weight_that_changes_nothing_is_refused_with_the_setting_that_does(
    recipe: Recipe,
    kinds: list[str],
    weights: list[float],
    settings: tuple[str, ...],
    messages: list[str],
    hint: str,
) -> None:
    config = recipe(entries(*weights), *settings)
    with pytest.raises(UserError) as refused:
        refuse_idle_settings(config, rewards(*kinds))
    assert all(message in refused.value.message for message in messages)
    assert hint in (refused.value.hint or "")


def test_weights_that_divide_a_kind_or_weigh_quality_are_accepted(recipe: Recipe) -> None:
    config = recipe(entries(2, 1, 1), "advantage.quality_weight=2")
    refuse_idle_settings(config, rewards("quality", "quality", "prompt"))
    with pytest.raises(UserError, match="weight=2 changes nothing"):  # the same, but alone of its kind
        refuse_idle_settings(config, rewards("quality", "prompt", "prompt"))
    refuse_lone_weights("evaluation.judges", config.rewards, rewards("prompt", "prompt", "identity"))
    with pytest.raises(UserError, match="weight=2 changes nothing"):
        refuse_lone_weights("evaluation.judges", config.rewards, rewards("identity", "prompt", "prompt"))


def test_a_judges_weight_that_changes_nothing_is_refused(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="evaluation.judges.0.weight=2 changes nothing"):
        refuse_lone_weights("evaluation.judges", recipe(entries(2, 1)).rewards, rewards("prompt", "identity"))


@pytest.mark.parametrize("preset", preset_names())
def test_no_preset_sets_what_changes_nothing(preset: str) -> None:
    config = load_config(preset)
    kinds = {"dino": "identity", "clip_i": "identity", "two_scale_identity": "identity"}
    of_preset = rewards(*(kinds.get(reward.name, "prompt") for reward in config.rewards))
    refuse_idle_settings(config, of_preset)
    assert idle_settings(config, of_preset) == []


@pytest.mark.parametrize(
    ("kinds", "settings", "words"),
    [
        (["identity"], (), "every reward is of kind identity, so this is plain GRPO"),
        (["prompt", "quality"], (), "every reward is of kind prompt or quality"),
        (
            ["prompt", "identity"],
            ("advantage.name=min",),
            "schedule.name=tdw has no effect: advantage.name=min",
        ),
        (["prompt", "identity"], ("advantage.name=identity_gate",), "does not use its weights"),
        (
            ["prompt", "identity"],
            ("rollout.sde_window={size: 2}", "train.trained_fraction=0.5"),
            "train.trained_fraction=0.5 has no effect",
        ),
        (
            ["prompt", "identity"],
            ("advantage.name=sum_then_normalise", "advantage.std=global"),
            "advantage.std=global has no effect",
        ),
        (["prompt", "identity"], ("train.clip_range=0.2",), "train.clip_range=0.2 has no effect"),
        (
            ["prompt", "identity"],
            ("evaluation.on_alarm=stop",),
            "evaluation.every=0 makes 1 after the base's",
        ),
    ],
)
def test_what_a_preset_may_set_is_said(
    recipe: Recipe, kinds: list[str], settings: tuple[str, ...], words: str
) -> None:
    (sentence,) = idle_settings(recipe(*settings), rewards(*kinds))
    assert words in sentence


def test_what_has_an_effect_is_not_said(recipe: Recipe) -> None:
    settings = (
        "train.clip_range=0.2",
        "train.inner_epochs=2",
        "advantage.name=gd2po_snr",
        "advantage.std=global",
        "evaluation.on_alarm=stop",
        "evaluation.every=1",
    )
    assert idle_settings(recipe(*settings), rewards("identity", "prompt")) == []
    # whitening takes a factor of all advantages out again, but not one of a single group
    whitened = recipe("advantage.name=gdpo", "advantage.std=global")
    assert idle_settings(whitened, rewards("identity", "prompt")) == []


def test_a_stop_at_alarms_that_cannot_be_raised_is_refused(recipe: Recipe) -> None:
    config = recipe("data={kind: manifest, train: rows.jsonl}", "evaluation.on_alarm=stop")
    with pytest.raises(UserError, match="evaluation.on_alarm=stop: nothing is held out"):
        check_judge_configs(config)


def test_a_size_of_references_that_get_the_shape_of_the_image_is_said_to_do_nothing() -> None:
    both = rewards("identity", "prompt")
    (sentence,) = idle_settings(load_config("flux2-klein", ["model.reference_fit=pad"]), both)
    assert sentence.startswith("data.reference_size=flux2 has no effect: model.reference_fit=pad gives")
    assert idle_settings(load_config("flux2-klein"), both) == []
