"""Mistakes in lists, in odd keys and of other types: one message with their place, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from customized_grpo.config import dump_config, load_config
from customized_grpo.errors import UserError


def refused(text: str, tmp_path: Path) -> str:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"extends: toybox\n{text}\n")
    with pytest.raises(UserError) as error:
        load_config(str(recipe))
    return error.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("evaluation: {judges: [{}]}", "evaluation.judges.0.name: must be given"),
        ("evaluation: {judges: [5]}", "evaluation.judges.0: got 5; write a section"),
        ("evaluation: {judges: [{name: x, bad: 1}]}", "evaluation.judges.0.bad: there is no such key"),
        ("evaluation: {judges: [{name: clip_t, weight: -1}]}", "evaluation.judges.0.weight: got -1"),
        ("evaluation: {judges: [{name: a, executor: {kind: x}}]}", "evaluation.judges.0.executor.kind: 'x'"),
        ("evaluation: {judges: [{name: a, executor: 5}]}", "evaluation.judges.0.executor: got 5"),
        ("evaluation: {judges: [{name: {a: 1}}]}", "evaluation.judges.0.name: got {'a': 1}"),
        ('evaluation: {judges: [{"a.b": 1, name: a}]}', "evaluation.judges.0.a.b: there is no such key"),
        ("rewards: [{name: a, options: 3}]", "rewards.0.options: got 3"),
        ('train: {"iterations.": 1}', "train.iterations.: there is no such key"),
        ('run: {"dir.x": 3}', "run.dir.x: there is no such key; did you mean run.dir?"),
        ('model: {lora: {"rank.x": 4}}', "model.lora.rank.x: there is no such key"),
        ("data: {kind: [1]}", "data.kind: '[1]' is not known; known: toybox, two-scale, manifest"),
        ("data: {kind: {a: 1}}", "is not known; known: toybox, two-scale, manifest"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    assert message in refused(text, tmp_path)


def test_mistakes_beside_an_odd_one_are_told_too(tmp_path: Path) -> None:
    text = 'evaluation: {judges: [{}], every: -1}\ntrain: {"group_size.": 1, micro_batch_size: 0}'
    message = refused(text, tmp_path)
    for place in (
        "evaluation.judges.0.name",
        "evaluation.every",
        "train.group_size.",
        "train.micro_batch_size",
    ):
        assert f"  {place}: " in message


def test_a_recipe_in_json_may_name_an_emoji(tmp_path: Path) -> None:
    """JSON writes a character above U+FFFF as two halves, which YAML alone leaves apart."""
    recipe = tmp_path / "recipe.json"
    content = {"extends": "toybox", "run": {"dir": "runs/🐶"}, "model": {"path": "models/🐶"}}
    recipe.write_text(json.dumps(content))
    assert "\\ud83d\\udc36" in recipe.read_text()
    config = load_config(f"{tmp_path}/recipe.json")
    assert (str(config.run.dir), config.model.path) == ("runs/🐶", "models/🐶")
    assert dump_config(config).encode()


@pytest.mark.parametrize(
    "text", ['run: {dir: "\\udce9"}', 'model: {path: "a\\ud83d"}', '"\\ud83d": {}', 'run: {"\\udc36": 1}']
)
def test_half_a_character_is_refused(text: str, tmp_path: Path) -> None:
    assert "half a character" in refused(text, tmp_path)
