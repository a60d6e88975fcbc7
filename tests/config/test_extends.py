from __future__ import annotations

from pathlib import Path

import pytest

from customized_grpo.config import dump_config, load_config
from customized_grpo.errors import UserError

BASE = """
model: {path: toybox, lora: {rank: 8}}
data: {kind: toybox, subjects: 7}
rewards: [{name: dino}, {name: clip_t}]
advantage: {name: sars, gamma: .7}
train: {group_size: 6}
"""


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_sections_are_merged_key_by_key_and_lists_are_replaced(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", BASE)
    mine = write(
        tmp_path, "mine.yaml", "extends: base.yaml\nmodel: {lora: {alpha: 4}}\nrewards: [{name: clip_i}]\n"
    )
    config = load_config(mine, ["train.group_size=5"])
    assert (config.model.lora.rank, config.model.lora.alpha) == (8, 4)
    assert [reward.name for reward in config.rewards] == ["clip_i"]
    assert config.train.group_size == 5
    assert config.run.dir == Path("runs/mine")


def test_a_recipe_extends_a_preset_or_a_file_beside_it_which_may_extend_again(tmp_path: Path) -> None:
    write(tmp_path, "shared/base.yaml", "extends: toybox\ntrain: {group_size: 6}\n")
    mine = write(tmp_path, "mine.yaml", "extends: shared/base.yaml\ntrain: {iterations: 9}\n")
    config = load_config(mine)
    assert (config.train.group_size, config.train.iterations, config.model.path) == (6, 9, "toybox")
    assert "extends" not in dump_config(config)


def test_another_choice_forgets_the_options_of_the_one_it_replaces(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", BASE)
    mine = write(
        tmp_path,
        "mine.yaml",
        "extends: base.yaml\nadvantage: {name: linear}\ndata: {kind: manifest, train: a.jsonl}\n",
    )
    config = load_config(mine)
    assert config.advantage.options == {} and config.data.kind == "manifest"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("extends: toybx\n", "did you mean toybox?"),
        ("extends: absent.yaml\n", "there is no recipe file"),
        ("extends: [toybox]\n", "extends: write one preset, or the path of one YAML file"),
        ("extends: mine.yaml\n", "extends goes in a circle"),
        ("extends: broken.yaml\n", "1 mistake in the recipe"),
        ('extends: "a\\0b"\n', "extends: the character NUL"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path: Path, text: str, what: str) -> None:
    write(tmp_path, "broken.yaml", "a: 1\na: 2\n")
    with pytest.raises(UserError, match="(?s)") as caught:
        load_config(write(tmp_path, "mine.yaml", text))
    assert what in str(caught.value)


def test_a_circle_through_other_folders_is_found(tmp_path: Path) -> None:
    write(tmp_path, "b/two.yaml", "extends: ../a/one.yaml\n")
    one = write(tmp_path, "a/one.yaml", "extends: ../b/two.yaml\n")
    with pytest.raises(UserError, match="goes in a circle: .*one.yaml -> .*two.yaml -> .*one.yaml"):
        load_config(one)
