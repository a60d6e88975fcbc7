"""Python values become the overrides of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from customized_grpo.api.settings import overrides
from customized_grpo.config import load_config
from customized_grpo.errors import UserError


def test_sections_and_dotted_keys_are_the_same() -> None:
    by_section = overrides({"train": {"iterations": 3}, "model": {"lora": {"rank": 4}}})
    assert by_section == overrides({"train.iterations": 3, "model.lora.rank": 4})
    assert by_section == ["train.iterations=3", "model.lora.rank=4"]


def test_values_arrive_in_a_recipe_as_they_are() -> None:
    settings = {
        "run": {"dir": Path("runs/a b"), "overwrite": True},
        "train.ema_decay": None,
        "train.learning_rate": 1e-5,
        "evaluation.use_ema": False,
        "rewards": [{"name": "clip_t", "weight": 1.0}, {"name": "dino", "segment": "none"}],
    }
    config = load_config("toybox-smoke", overrides(settings))
    assert config.run.dir == Path("runs/a b") and config.run.overwrite is True
    assert config.train.ema_decay is None and config.train.learning_rate == 1e-5
    assert [reward.name for reward in config.rewards] == ["clip_t", "dino"]


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), b"bytes"])
def test_a_value_that_no_recipe_can_hold_is_refused_with_its_key(value: object) -> None:
    with pytest.raises(UserError, match=r"train\.iterations: \w+ is no value of a recipe"):
        overrides({"train": {"iterations": value}})
