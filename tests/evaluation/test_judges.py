"""Held-out judges of photos: copying is seen, targets decide identity, and no training reward may judge."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from customized_grpo.cli.main import main
from customized_grpo.config.schema import RewardConfig
from customized_grpo.data.examples import Example
from customized_grpo.errors import UserError
from customized_grpo.evaluation.judges import RewardJudges, build_judges, in_shape
from customized_grpo.rewards import FunctionReward, Reward, ScoringBatch, build_reward
from customized_grpo.rewards.base import needs_references
from customized_grpo.toybox.export import export_manifest
from customized_grpo.toybox.source import ToyBoxSource
from customized_grpo.training.parts import build_data, build_scorer, check_held_out

DINO = Path(__file__).parents[2] / "src" / "customized_grpo" / "toybox" / "assets" / "dino"


def encoder(segment: str = "none") -> Reward:
    return build_reward(RewardConfig.model_validate({"name": "dino", "path": "toybox", "segment": segment}))


def brightness(batch: ScoringBatch) -> Tensor:
    return batch.images.mean((1, 2, 3))


PROMPT = FunctionReward("brightness", "prompt", brightness)


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    """Toys whose target is another true view."""
    source = ToyBoxSource(4, 1, 0, "held-out")
    return [replace(source[n], target=source[n].meta["other_view"]) for n in range(4)]


def stacked(rows: list[Example], what: str) -> Tensor:
    return torch.stack([e.references[0] if what == "reference" else e.target for e in rows])  # type: ignore[misc]


def test_a_copy_is_seen_and_its_identity_is_that_of_an_honest_view(rows: list[Example]) -> None:
    judges = RewardJudges([encoder(), PROMPT], ["dino", "p"], [1.0, 1.0], by_target=True)
    copied, true = (judges.columns(stacked(rows, what), rows) for what in ("reference", "target"))
    assert copied["monitor/copy_score"] == pytest.approx([1.0] * 4, abs=1e-5)
    assert true["monitor/copy_score"] == pytest.approx([-1.0] * 4, abs=1e-5)
    assert copied["monitor/background_similarity"] == pytest.approx([1.0] * 4)
    assert bool((true["monitor/background_similarity"] < 1).all())
    assert true["judge/identity"] == pytest.approx([1.0] * 4, abs=1e-5)
    assert bool((copied["judge/identity"] < 0.999).all()), "a copy earns what another view of the toy does"
    assert copied["judge/prompt"] == pytest.approx(stacked(rows, "reference").mean((1, 2, 3)))


def test_without_targets_identity_is_likeness_to_the_references(rows: list[Example]) -> None:
    bare = [replace(row, target=None, masks=None) for row in rows]
    judges = RewardJudges([encoder()], ["dino"], [1.0], by_target=False)
    found = judges.columns(stacked(rows, "reference"), bare)
    assert found["judge/identity"] == pytest.approx([1.0] * 4, abs=1e-5)
    assert found["monitor/copy_score"].isnan().all()
    assert found["monitor/background_similarity"].isnan().all()


def test_every_batch_has_the_same_columns_whatever_its_rows_lack(rows: list[Example]) -> None:
    judges = RewardJudges([encoder()], ["dino"], [1.0], by_target=False)
    mixed = [rows[0], replace(rows[1], target=None), replace(rows[2], masks=None), rows[3]]
    whole = judges.columns(stacked(rows, "reference"), mixed)
    for n, row in enumerate(mixed):
        one = judges.columns(stacked(rows[n : n + 1], "reference"), [row])
        assert one.keys() == whole.keys()
        for name, values in one.items():
            assert values.tolist() == pytest.approx([float(whole[name][n])], abs=1e-5, nan_ok=True), name
    assert math.isnan(whole["monitor/copy_score"][1])
    assert math.isnan(whole["monitor/background_similarity"][2])


def test_the_nearest_of_several_references_decides_about_copying(rows: list[Example]) -> None:
    row = replace(rows[0], references=(rows[1].references[0], rows[0].references[0]), masks=None)
    judges = RewardJudges([encoder()], ["dino"], [1.0], by_target=True)
    found = judges.columns(rows[0].references[0][None], [row])
    assert found["monitor/copy_score"].item() == pytest.approx(1.0, abs=1e-5)


class Asking:
    """A judge that keeps the references it is shown."""

    def __init__(self, kind: str, *, needs_references: bool) -> None:
        self.name = f"{kind} {needs_references}"
        self.kind: Any = kind
        self.needs_references = needs_references
        self.seen: list[list[Tensor]] = []

    def score(self, batch: ScoringBatch) -> Tensor:
        self.seen = batch.references
        return torch.zeros(len(batch))

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name}


def test_targets_stand_for_the_references_of_a_likeness_and_of_nothing_else(rows: list[Example]) -> None:
    likeness = Asking("identity", needs_references=False)
    # an edit is one of the reference: a judge that saw the edited image would call a right edit no change
    others = [
        Asking("identity", needs_references=True),
        Asking("prompt", needs_references=True),
        Asking("prompt", needs_references=False),
    ]
    judges: list[Reward] = [likeness, *others]
    RewardJudges(judges, list("abcd"), [1.0] * 4, by_target=True).columns(stacked(rows, "target"), rows)
    for row, example in enumerate(rows):
        assert [id(image) for image in likeness.seen[row]] == [id(example.target)]
        for judge in others:
            assert [id(image) for image in judge.seen[row]] == list(map(id, example.references))


def test_judges_of_edits_and_of_several_subjects_need_the_references_themselves() -> None:
    options = {"url": "http://localhost:1/v1", "model": "m"}
    needing = {}
    for rubric in ("identity", "prompt", "edit_identity", "edit_prompt"):
        entry = RewardConfig(name="judge", options={**options, "rubric": rubric}, noise=0.1)
        needing[rubric] = needs_references(build_reward(entry))
    assert needing == {"identity": False, "prompt": False, "edit_identity": True, "edit_prompt": True}
    matching = build_reward(RewardConfig(name="dino", path="toybox", options={"match": True}))
    assert needs_references(matching) and not needs_references(encoder())
    # its references have masks, where targets have none
    RewardJudges([matching], ["dino"], [1.0], by_target=True)


def test_judges_of_a_kind_are_weighted(rows: list[Example]) -> None:
    twice = FunctionReward("twice", "prompt", lambda batch: 2 * brightness(batch))
    images = stacked(rows, "target")
    found = RewardJudges([PROMPT, twice], ["p", "twice"], [3.0, 1.0], by_target=True).columns(images, rows)
    assert found["judge/prompt"] == pytest.approx(1.25 * images.mean((1, 2, 3)))
    assert "judge/identity" not in found and "monitor/copy_score" not in found


def test_every_judge_has_a_column_of_its_own_and_quality_is_judged_too(rows: list[Example]) -> None:
    rewards = [
        FunctionReward(name, kind, lambda batch, factor=factor: factor * brightness(batch))
        for name, kind, factor in (("a", "prompt", 1.0), ("b", "prompt", 3.0), ("c", "quality", 5.0))
    ]
    images = torch.full((len(rows), 3, *rows[0].references[0].shape[1:]), 0.25)
    columns = RewardJudges(rewards, ["a", "b", "c"], [1.0] * 3, by_target=False).columns(images, rows)
    means = {name: float(values.mean()) for name, values in columns.items() if name.startswith("judge")}
    assert means == pytest.approx(
        {
            "judge/prompt": 0.5,
            "judge/quality": 1.25,
            "judge_score/a": 0.25,
            "judge_score/b": 0.75,
            "judge_score/c": 1.25,
        }
    )


def test_judges_that_cannot_judge_are_refused(rows: list[Example]) -> None:
    with pytest.raises(UserError, match="dino cuts out the subject, but targets have no masks"):
        RewardJudges([encoder("reference")], ["dino"], [1.0], by_target=True)
    assert build_judges((), rows, torch.device("cpu")) is None


def test_a_training_reward_in_disguise_is_refused(tmp_path: Path) -> None:
    judges = RewardJudges([encoder(), PROMPT], ["dino", "p"], [1.0, 1.0], by_target=True)
    shutil.copytree(DINO, tmp_path / "elsewhere")
    same = build_reward(RewardConfig(name="dino", path=str(tmp_path / "elsewhere"), segment="reference"))
    with pytest.raises(UserError, match="dino has the weights of a training reward"):
        judges.check_apart([same.fingerprint()])
    with pytest.raises(UserError, match="brightness"):
        judges.check_apart([PROMPT.fingerprint()])
    judges.check_apart([build_reward(RewardConfig(name="clip_t", path="toybox")).fingerprint()])


def test_a_model_behind_an_endpoint_is_the_same_with_another_rubric_or_seed() -> None:
    def judge(**options: Any) -> Reward:
        given = {"url": "http://localhost:1/v1", "model": "m", "rubric": "prompt", **options}
        return build_reward(RewardConfig(name="judge", options=given))

    trained = judge().fingerprint()
    for same in (judge(seed=1), judge(rubric="identity"), judge(log_probs=False)):
        with pytest.raises(UserError, match="judge has the weights of a training reward"):
            RewardJudges([same], ["judge"], [1.0], by_target=False).check_apart([trained])
    for other in (judge(model="n"), judge(url="http://localhost:2/v1")):
        RewardJudges([other], ["judge"], [1.0], by_target=False).check_apart([trained])


# In a run


@pytest.fixture(scope="module")
def other_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Dinov2Model with other weights than the reward's."""
    folder = tmp_path_factory.mktemp("judge") / "dino"
    shutil.copytree(DINO, folder)
    noise = torch.Generator().manual_seed(0)
    weights = load_file(folder / "model.safetensors")
    moved = {
        name: (value.float() + 0.05 * torch.randn(value.shape, generator=noise)).to(value.dtype)
        for name, value in weights.items()
    }
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_manifest(tmp_path_factory.mktemp("rows") / "data", subjects=2, seed=0)


def overrides(manifest: Path, judge: Any, **reward: Any) -> list[str]:
    data = {"kind": "manifest", "train": str(manifest), "held_out": str(manifest)}
    judged = {"name": "dino", "segment": "none", "path": str(judge), **reward}
    return [f"data={json.dumps(data)}", f"evaluation.judges={json.dumps([judged])}"]


def test_a_run_on_photos_has_judges_monitors_and_gaps(
    tmp_path: Path, manifest: Path, other_dino: Path
) -> None:
    settings = [*overrides(manifest, other_dino), "evaluation.samples_per_prompt=2", "evaluation.every=1"]
    with pytest.raises(SystemExit) as left:
        main(["train", "toybox-smoke", f"run.dir={tmp_path / 'run'}", *settings])
    assert left.value.code == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    base, *later = [line for line in lines if line["kind"] == "eval"]
    measured = {"judge/identity", "monitor/copy_score", "monitor/background_similarity", "monitor/diversity"}
    assert all(line[name] is not None for line in (base, *later) for name in measured)
    assert not any(name.startswith("gap/") for name in base)
    assert len(later) == 2
    train = [line for line in lines if line["kind"] == "train"]
    for line, trained in zip(later, train, strict=True):
        for kind in ("identity", "prompt"):
            gap = trained[f"reward/{kind}"] - line[f"reward/{kind}"]
            assert line[f"gap/{kind}"] == pytest.approx(gap, abs=1e-6)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert measured <= summary["difference"].keys()
    report = (tmp_path / "run" / "report.html").read_text()
    for title in ("Image statistics against the base", "Training ahead of held-out prompts", "Diversity"):
        assert f"<h3>{title}</h3>" in report


def test_judges_are_checked_with_the_data_and_against_the_rewards(
    recipe: Any, manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="dino is a training reward as well"):
        build_data(recipe(*overrides(manifest, "toybox")))
    with pytest.raises(UserError, match="data.kind=toybox brings held-out judges of its own"):
        build_data(recipe(overrides(manifest, "x")[1]))
    shutil.copytree(DINO, tmp_path / "copy")
    config = recipe(*overrides(manifest, tmp_path / "copy"))
    with pytest.raises(UserError, match="has the weights of a training reward"):
        check_held_out(build_data(config), build_scorer(config))


def test_a_photo_of_another_shape_is_compared_around_its_middle() -> None:
    photo = torch.zeros(3, 32, 64)
    photo[:, :, 16:48] = 1.0
    torch.testing.assert_close(in_shape(photo, (16, 16)), torch.ones(3, 16, 16))
    high = torch.zeros(3, 64, 32)
    high[:, 16:48] = 1.0
    torch.testing.assert_close(in_shape(high, (8, 8)), torch.ones(3, 8, 8))
    assert in_shape(photo, (32, 64)) is photo
