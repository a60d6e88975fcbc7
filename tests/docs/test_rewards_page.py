"""docs/rewards.md and the README of the rewards: their code runs, their recipes load, their calls fit."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_rewards as tiny
from customized_grpo.config import load_config
from customized_grpo.rewards import Reward, check_rewards, registry

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "rewards.md"
README = ROOT / "src" / "customized_grpo" / "rewards" / "README.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", [PAGE, README], ids=["docs", "readme"])
def test_the_reward_of_the_page_scores(page: Path) -> None:
    namespace: dict[str, Any] = {}
    for source in blocks(page, "python"):
        exec(source, namespace)
    reward = namespace["colourful"]
    assert isinstance(reward, Reward) and reward.kind == "quality"
    scores = reward.score(tiny.make_batch(3))
    assert scores.shape == (3,) and scores.dtype == torch.float32
    if "ranked" in namespace:
        assert sorted(namespace["ranked"].score(tiny.make_batch(3)).tolist()) == [0, 0.5, 1]


@pytest.mark.parametrize("recipe", blocks(PAGE, "yaml"))
def test_the_recipes_of_the_page_load(tmp_path: Path, recipe: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: toybox-smoke\n{recipe}")
    check_rewards(load_config(str(file)).rewards)


@pytest.mark.parametrize("page", [PAGE, README], ids=["docs", "readme"])
def test_decorators_are_called_as_they_are_defined(page: Path) -> None:
    calls = re.findall(r"`@(register\w*\([^`]*\))`", page.read_text(encoding="utf-8"))
    assert len(calls) == 2
    for text in calls:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg is not None}
        inspect.signature(getattr(registry, call.func.id)).bind(*call.args, **keywords)
