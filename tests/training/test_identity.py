"""What two states of a run, or two processes of one, may differ in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from customized_grpo.config import Config
from customized_grpo.config.places import settle_paths
from customized_grpo.engine.agreement import check_processes
from customized_grpo.engine.engine import Engine
from customized_grpo.errors import UserError
from customized_grpo.training.identity import (
    SCORES_DEPEND_ON,
    Difference,
    differing,
    differing_settings,
    process_values,
    reward_values,
)

Recipe = Callable[..., Config]


@pytest.mark.parametrize(
    "override",
    [
        "train.iterations=99",
        "checkpoint.every=7",
        "checkpoint.keep=5",
        "evaluation.every=3",
        "trackers=[tensorboard]",
        "rewards.dino.executor={kind: thread}",
        "model.cache=elsewhere",
        "run.process_timeout_s=5.0",
        "run.deterministic=true",
    ],
)
def test_what_changes_no_number_is_no_obstacle(recipe: Recipe, override: str) -> None:
    assert differing_settings(recipe(), recipe(override), {}) == []


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.learning_rate=0.5", "train.learning_rate"),
        ("rewards.dino.weight=0.5", "rewards.1.weight"),
        ("evaluation.seed=5", "evaluation.seed"),
        ("model.guidance=3.5", "model.guidance"),
        ("rollout.batch_size=5", "rollout.batch_size"),
        ("model.path=other", "model.path"),
    ],
)
def test_what_changes_numbers_is_listed(recipe: Recipe, override: str, key: str) -> None:
    old, new = recipe(), recipe(override)
    names = [reward.name for reward in old.rewards]
    key = key.replace("rewards.1", f"rewards.{names.index('dino')}")
    (difference,) = differing_settings(old, new, {})
    assert difference.key == key
    assert str(difference).startswith(f"{key}: ") and "in the checkpoint" in str(difference)


def test_the_number_of_iterations_counts_where_the_learning_rate_falls_with_it(recipe: Recipe) -> None:
    cosine = "train.learning_rate_schedule=cosine"
    (difference,) = differing_settings(recipe(cosine), recipe(cosine, "train.iterations=99"), {})
    assert difference.key == "train.iterations"


def test_a_path_whose_content_is_known_is_no_difference(recipe: Recipe) -> None:
    contents = {"model.files.model_index.json": "aa"}
    assert differing_settings(recipe(), recipe("model.path=other"), contents) == []


def test_the_file_of_a_lora_says_nothing_of_a_base_whose_files_are_unknown(recipe: Recipe) -> None:
    contents = {"model.files.fuse_lora.0": "aa"}
    old, new = (
        recipe("model.fuse_lora=a.safetensors"),
        recipe("model.fuse_lora=b.safetensors", "model.path=x"),
    )
    assert [difference.key for difference in differing_settings(old, new, contents)] == ["model.path"]
    assert "model.fuse_lora" in {d.key for d in differing_settings(recipe(), new, {"model.files.a": "aa"})}


def test_of_loras_the_contents_and_scales_are_compared_not_the_paths(recipe: Recipe) -> None:
    contents = {"model.files.fuse_lora.0": "aa", "model.files.start_lora": "bb"}
    old = recipe("model.fuse_lora=[{path: a, scale: 0.5}, c]", "model.start_lora=x")
    new = recipe("model.fuse_lora=[{path: b, scale: 0.7}, d]", "model.start_lora=y")
    keys = [difference.key for difference in differing_settings(old, new, contents)]
    assert keys == ["model.fuse_lora.0.scale", "model.fuse_lora.1.path"]


@pytest.mark.parametrize(
    "override", ["data.seed=1", "data.held_out_subjects=7", "data.held_out_prompts_per_subject=3"]
)
def test_scores_on_other_held_out_toys_cannot_be_compared(recipe: Recipe, override: str) -> None:
    (difference,) = differing_settings(recipe(), recipe(override), {})
    assert difference.is_about(SCORES_DEPEND_ON)


def test_scores_by_other_masks_cannot_be_compared_and_those_after_other_training_can(recipe: Recipe) -> None:
    assert Difference("segmenter.path", "a", "b").is_about(SCORES_DEPEND_ON)
    (difference,) = differing_settings(recipe(), recipe("data.subjects=7"), {})
    assert not difference.is_about(SCORES_DEPEND_ON)


def test_a_difference_is_allowed_by_its_key_or_a_section_of_it() -> None:
    difference = Difference("data.train.images", "3 files, aa", "3 files, bb")
    assert all(difference.is_about([key]) for key in ("data", "data.train", "data.train.images"))
    assert not any(difference.is_about([key]) for key in ("dat", "data.train.rows", "model", ""))


def test_rewards_are_compared_key_by_key() -> None:
    before = reward_values("rewards", [{"name": "dino", "weights": "aa", "segment": "reference"}])
    now = reward_values("rewards", [{"name": "dino", "weights": "bb", "segment": "reference", "noise": 0.1}])
    assert [str(difference) for difference in differing(before, now)] == [
        "rewards.0.dino.weights: aa in the checkpoint, bb now",
        "rewards.0.dino.noise: nothing in the checkpoint, 0.1 now",
    ]


class Group:
    """Two processes, of which this is the main one."""

    def __init__(self, theirs: dict[str, Any]) -> None:
        self.theirs = theirs

    def gather_json(self, mine: dict[str, Any]) -> list[dict[str, Any]]:
        return [mine, self.theirs]

    def from_main(self, work: Callable[[], object]) -> object:
        return work()


def test_processes_with_other_recipes_versions_or_variables_are_refused(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = process_values(recipe())
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    theirs = process_values(recipe("run.seed=1", "advantage.name=linear", "run.dir=b", "model.device=cpu"))
    theirs["versions.torch"] = "1.0"
    with pytest.raises(UserError) as refused:
        check_processes(cast(Engine, Group(theirs)), mine)
    message = refused.value.message
    assert "run.seed: 0 in process 0, 1 in process 1" in message
    assert "advantage.name: sars in process 0, linear in process 1" in message
    assert "environment.NVIDIA_TF32_OVERRIDE: nothing in process 0, 1 in process 1" in message
    assert "versions.torch: " in message
    assert "run.dir" not in message and "model.device" not in message
    check_processes(cast(Engine, Group(mine)), mine)


def test_paths_are_those_of_the_folder_where_training_began(
    recipe: Recipe, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tb").mkdir()
    (tmp_path / "tb" / "train.jsonl").touch()
    (tmp_path / "judges" / "dino").mkdir(parents=True)
    config = recipe(
        "data={kind: manifest, train: tb/train.jsonl, held_out: tb/none.jsonl}",
        "rewards.dino.path=judges/dino",
        "model.path=owner/name",
    )
    settled = settle_paths(config, tmp_path)
    assert settled.data.train == tmp_path / "tb" / "train.jsonl"  # type: ignore[union-attr]
    assert str(settled.data.held_out) == "tb/none.jsonl"  # type: ignore[union-attr]
    assert settled.model.path == "owner/name"
    paths = {reward.name: reward.path for reward in settled.rewards}
    assert paths["dino"] == str(tmp_path / "judges" / "dino")
