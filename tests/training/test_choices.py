"""Rows that choose their rewards: what is asked, what is trained on, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_rewards as tiny
from customized_grpo.algorithms.rules import Rule
from customized_grpo.config import Config
from customized_grpo.errors import UserError
from customized_grpo.rewards import FunctionReward, ScoringBatch
from customized_grpo.rewards.base import NOT_ASKED
from customized_grpo.rewards.executors import InlineExecutor, Scorer
from customized_grpo.toybox.export import export_manifest
from customized_grpo.training import trainer
from customized_grpo.training.choices import check_choices
from customized_grpo.training.metrics import signal_health, signal_metrics
from customized_grpo.training.parts import build_data
from customized_grpo.training.signal import LearningSignal
from customized_grpo.training.waste import find_waste

Recipe = Callable[..., Config]
G = 3


@dataclasses.dataclass(frozen=True)
class Named:
    name: str
    kind: Any


REWARDS = [Named("id", "identity"), Named("text", "prompt"), Named("other", "prompt")]
ENTRIES = "rewards=[{name: id}, {name: text}, {name: other, weight: 3}]"


def some_scores() -> torch.Tensor:
    return torch.randn(4 * G, 3, generator=torch.Generator().manual_seed(1))


def signal(recipe: Recipe, scores: torch.Tensor) -> LearningSignal:
    config = recipe(ENTRIES, f"train.group_size={G}", "advantage.name=sars")
    return LearningSignal.from_scores(config, REWARDS, scores, 0)


def combined(recipe: Recipe, found: LearningSignal) -> torch.Tensor:
    rule: Rule = recipe("advantage.name=sars").advantage.build()
    return found.combined(1, rule, G, 5.0)


def test_each_reward_is_asked_about_the_rows_that_chose_it() -> None:
    seen: dict[str, list[int]] = {}

    def reward(name: str) -> InlineExecutor:
        def score(batch: ScoringBatch) -> torch.Tensor:
            seen[name] = [row["id"] for row in batch.meta]
            values = torch.tensor([float(row["id"]) for row in batch.meta])
            return values / 0 if name == "c" else values

        return InlineExecutor(FunctionReward(name, "prompt", score))

    choices: list[dict[str, Any]] = [{}, {"rewards": ["a"]}, {"rewards": ["c", "a"]}, {"rewards": ["a"]}]
    meta = [{"id": number, **choice} for number, choice in enumerate(choices)]
    batch = dataclasses.replace(tiny.make_batch(4), meta=meta)
    scorer = Scorer([reward(name) for name in "abc"], ["stop"] * 3, [1.0, 2.0, 1.0])
    scores = scorer.score(batch)
    assert seen == {"a": [0, 1, 2, 3], "b": [0], "c": [0, 2]}
    x = NOT_ASKED
    nan = math.nan
    # an infinite score is none; only what was not asked is NOT_ASKED
    expected = torch.tensor([[0.0, 0.0, nan], [1.0, x, x], [2.0, x, nan], [3.0, x, x]])
    torch.testing.assert_close(scores, expected, equal_nan=True)
    assert scorer.by_name(scores)["b"].isnan().tolist() == [False, True, True, True]
    kinds = scorer.by_kind(scores[:, :])["prompt"]
    torch.testing.assert_close(kinds, torch.tensor([nan, 1.0, nan, 3.0]), equal_nan=True)


def test_groups_of_one_kind_get_its_advantage_and_the_others_are_as_before(recipe: Recipe) -> None:
    scores = some_scores()
    whole = signal(recipe, scores)
    chosen = scores.clone()
    chosen[G : 2 * G, 0] = NOT_ASKED  # the second group: prompt alone, both rewards of it
    chosen[2 * G : 3 * G, 1:] = NOT_ASKED  # the third: identity alone
    chosen[3 * G :, 2] = NOT_ASKED  # the fourth: both kinds, one reward of prompt
    found = signal(recipe, chosen)
    assert (
        found.present.tolist()
        == [[True, True]] * G + [[True, False]] * G + [[False, True]] * G + [[True, True]] * G
    )
    assert bool(found.valid.all())
    ours = combined(recipe, found)
    assert torch.equal(ours[:G], combined(recipe, whole)[:G])
    assert torch.allclose(ours[G : 2 * G], whole.advantages[G : 2 * G, 0])
    assert torch.allclose(ours[2 * G : 3 * G], whole.advantages[2 * G : 3 * G, 1])
    assert not torch.equal(ours[3 * G :], combined(recipe, whole)[3 * G :])
    assert torch.equal(
        found.rows(slice(G, 3 * G)).combined(1, recipe("advantage.name=sars").advantage.build(), G, 5.0),
        ours[G : 3 * G],
    )


def test_what_was_not_asked_is_no_gap_but_what_could_not_be_scored_is(recipe: Recipe) -> None:
    scores = some_scores()
    scores[G:, 0] = NOT_ASKED
    scores[0, 0] = math.nan
    found = signal(recipe, scores)
    assert found.valid.tolist() == [False] + [True] * (4 * G - 1)
    health = signal_health(found, G)
    assert health["nan/id"] == pytest.approx(1 / G) and health["nan/text"] == 0
    assert health["zero/id"] == 0
    metrics = signal_metrics(found, G)
    assert metrics["score/id/nan_share"] == pytest.approx(1 / G)
    assert metrics["health/nan_samples"] == pytest.approx(1 / G) and metrics["health/zero_std_groups"] == 0
    assert find_waste(found.names, scores, found, [0.1], 0.2) is None
    waste = find_waste(found.names, scores, found, [0.1], 0.05)
    assert waste is not None and "1 of 12 samples could not be scored (id lacks 1)" in waste.message
    nobody = signal(recipe, torch.cat([torch.full((4 * G, 1), NOT_ASKED), some_scores()[:, 1:]], dim=1))
    assert "nan/id" not in signal_health(nobody, G) and bool(nobody.valid.all())


def test_choices_of_no_reward_are_listed(tmp_path: Path, recipe: Recipe) -> None:
    manifest = export_manifest(tmp_path / "tb", 3, 0)
    items = [json.loads(line) for line in manifest.read_text().splitlines()]
    for item, chosen in zip(items, (["dino"], ["dyno"], [], "dino"), strict=False):
        item["meta"] = {**(item.get("meta") or {}), "rewards": chosen}
    manifest.write_text("".join(json.dumps(item) + "\n" for item in items))
    data = build_data(recipe(f"data={{kind: manifest, train: {manifest}}}"))
    with pytest.raises(UserError, match="`meta.rewards` of 3 rows does not choose") as error:
        check_choices(data.train, data.held_out, ["dino", "clip_t"])
    assert "'dyno' is no reward of the recipe; did you mean 'dino'?" in error.value.message
    assert "is no list of names, or an empty one" in error.value.message


@pytest.mark.slow
def test_a_run_scores_its_rows_by_their_choice(tmp_path: Path, recipe: Recipe) -> None:
    manifest = export_manifest(tmp_path / "tb", 2, 0)
    items = [json.loads(line) for line in manifest.read_text().splitlines()]
    for number, item in enumerate(items):
        item["meta"] = {**(item.get("meta") or {}), "rewards": [["dino"], ["clip_t"]][number % 2]}
    manifest.write_text("".join(json.dumps(item) + "\n" for item in items))
    config = recipe(
        f"run.dir={tmp_path / 'run'}",
        f"data={{kind: manifest, train: {manifest}}}",
        "train.prompts_per_iteration=4",
    )
    assert trainer.train(config) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shares = [line["score/dino/nan_share"] for line in lines if "score/dino/nan_share" in line]
    assert shares and set(shares) == {0}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two manifests whose ids differ."""
    folder = tmp_path_factory.mktemp("mix")
    made = [export_manifest(folder / name, 2, seed) for name, seed in (("a", 0), ("b", 1))]
    items = [json.loads(line) for line in made[1].read_text().splitlines()]
    made[1].write_text("".join(json.dumps(item | {"id": f"b-{item['id']}"}) + "\n" for item in items))
    return made


def test_manifests_are_mixed_and_their_ids_must_differ(recipe: Recipe, manifests: list[Path]) -> None:
    first, second = manifests
    data = f"data={{kind: manifest, train: {first}, mix: [{{train: {second}, weight: 2, rewards: [dino]}}]}}"
    found = build_data(recipe(data))
    n_rows = len(first.read_text().splitlines())
    assert len(found.train) == n_rows + len(second.read_text().splitlines())
    assert found.train[n_rows].meta["rewards"] == ["dino"] and "rewards" not in found.train[0].meta
    assert set(found.fingerprints) == {"train", "mix.0"}
    with pytest.raises(UserError, match="rewards"):
        check_choices(found.train, (), ["clip_t"])
    check_choices(found.train, (), ["clip_t", "dino"])
    with pytest.raises(UserError, match=f"{n_rows} ids are in several manifests"):
        build_data(recipe(f"data={{kind: manifest, train: {first}, mix: [{{train: {first}}}]}}"))


@pytest.mark.slow
def test_a_run_on_two_manifests_is_trained_and_resumed(
    tmp_path: Path, recipe: Recipe, manifests: list[Path]
) -> None:
    first, second = manifests
    config = recipe(
        f"run.dir={tmp_path / 'run'}",
        f"data={{kind: manifest, train: {first}, rewards: [clip_t]}}",
        f"data.mix=[{{train: {second}, rewards: [dino]}}]",
        "train.prompts_per_iteration=4",
    )
    assert trainer.train(config) == 0
    assert trainer.resume(tmp_path / "run", overrides=["train.iterations=3"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "score/dino" in line]
    assert len(trained) == 3
    assert all(line["score/dino/nan_share"] == 0 and line["score/clip_t/nan_share"] == 0 for line in trained)
