"""One subject and a few prompts of its owner's: images and curves over time, the best kept, at their size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from customized_grpo.config import Config
from customized_grpo.errors import UserError
from customized_grpo.generation.opening import open_generator
from customized_grpo.toybox.export import export_manifest
from customized_grpo.training import trainer
from customized_grpo.training.parts import build_data, build_engine, open_parts

Recipe = Callable[..., Config]

pytestmark = pytest.mark.slow

OWN = ("evaluation.height=32", "evaluation.width=48", "evaluation.guidance=1.0", "evaluation.steps=3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows of one subject, to train on and to look at."""
    folder = tmp_path_factory.mktemp("own")
    export_manifest(folder / "tb", 4, 0)
    rows = [json.loads(line) for line in (folder / "tb" / "manifest.jsonl").read_text().splitlines()]
    lines = [json.dumps(rows[0] | {"id": f"row-{n}", "prompt": rows[n]["prompt"]}) + "\n" for n in range(2)]
    (folder / "tb" / "rows.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def overrides(folder: Path) -> list[str]:
    rows = folder / "tb" / "rows.jsonl"
    return [f"data={{kind: manifest, train: {rows}}}", f"evaluation.prompts={rows}", *OWN]


@pytest.fixture(scope="module")
def run(folder: Path, overrides: list[str], recipe: Recipe) -> Path:
    settings = ("evaluation.every=1", "checkpoint.keep=1", "checkpoint.best=reward/identity")
    config = recipe(f"run.dir={folder / 'run'}", *overrides, *settings)
    assert trainer.train(config) == 0
    return config.run.dir


def test_images_and_means_over_time_are_there(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    assert [line["iteration"] for line in evaluations] == [0, 1, 2]
    assert all("reward/identity" in line and "score/dino" in line for line in evaluations)
    sizes = {Image.open(file).size for file in (run / "samples").rglob("*.png")}
    assert (48, 32) in sizes
    assert "reward/identity" in (run / "report.html").read_text()


def test_the_owner_of_one_subject_is_not_told_to_hold_one_out(
    recipe: Recipe, overrides: list[str], folder: Path
) -> None:
    def note(*settings: str) -> str:
        config = recipe(*overrides, *settings)
        [found] = [note for note in build_data(config).notes if "measure what was" in note]
        return found

    split = "; `cgrpo data convert --held-out` splits by subject"
    assert note().endswith("what was trained on, not new subjects")
    held_out = ("evaluation.prompts=null", f"data.held_out={folder / 'tb' / 'manifest.jsonl'}")
    assert note(*held_out).endswith(split)


def test_the_best_is_kept_and_can_be_named(run: Path) -> None:
    best = json.loads((run / "best.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    means = {line["iteration"]: line["reward/identity"] for line in lines if line["kind"] == "eval"}
    assert best["mean"] == pytest.approx(max(means[1], means[2]))
    opened = open_generator(str(run), step="best")
    assert opened.checkpoint == best["iteration"]
    assert (opened.size, opened.steps, opened.policy.guidance) == ((32, 48), 3, 1.0)
    with pytest.raises(UserError, match="toybox is not a run"):
        open_generator("toybox", step="best")


def test_evaluation_draws_at_its_own_size_and_guidance_and_leaves_the_policy_as_it_was(
    recipe: Recipe, overrides: list[str], folder: Path
) -> None:
    config = recipe(*overrides, f"run.dir={folder / 'other'}")
    with open_parts(config, build_engine(config)) as parts:
        _, images = parts.evaluation.evaluate()
        assert images.shape == (2, 3, 32, 48)
        assert parts.policy.guidance == config.model.guidance != 1.0
        parts.evaluation.guidance = config.model.guidance
        _, otherwise = parts.evaluation.evaluate()
        assert parts.evaluation_encoder is not parts.encoder
    embeds = parts.policy.transformer.config.guidance_embeds
    assert torch.equal(images, otherwise) != embeds  # a model that embeds no guidance draws the same


def test_without_settings_of_its_own_evaluation_shares_the_encoder(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(f"run.dir={tmp_path / 'run'}")
    assert config.evaluation_model == config.model
    with pytest.raises(UserError, match="data.kind=toybox draws 64x64 images, the model makes 32x64"):
        build_data(recipe("evaluation.height=32"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["evaluation.prompts=x.jsonl"], "data.kind=toybox holds out rows of its own"),
        (
            ["data={kind: manifest, train: a.jsonl, held_out: b.jsonl}", "evaluation.prompts=x.jsonl"],
            "data.held_out has rows to evaluate on already",
        ),
        (["data={kind: manifest, train: a.jsonl}", "checkpoint.best=judge/identity"], "nothing is evaluated"),
    ],
)
def test_what_has_no_effect_is_refused(recipe: Recipe, settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(*settings)
