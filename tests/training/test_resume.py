"""Resume: exactly or not at all, longer, and across damaged records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from customized_grpo.config import Config, load_config
from customized_grpo.errors import UserError
from customized_grpo.files import file_sha256
from customized_grpo.reporting.metrics import read_metrics
from customized_grpo.runs.checkpoints import Checkpoint, CheckpointStore
from customized_grpo.toybox.export import export_manifest
from customized_grpo.training import trainer

pytestmark = pytest.mark.slow

Recipe = Callable[..., Config]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    """Data, and a run of one iteration on it."""
    folder = tmp_path_factory.mktemp("resume")
    export_manifest(folder / "tb", 4, 0)
    rows = (folder / "tb" / "manifest.jsonl").read_text().splitlines(keepends=True)
    (folder / "tb" / "train.jsonl").write_text("".join(rows[:2]))
    (folder / "tb" / "held_out.jsonl").write_text("".join(rows[2:4]))
    data = f"data={{kind: manifest, train: {folder}/tb/train.jsonl, held_out: {folder}/tb/held_out.jsonl}}"
    config = recipe(data, f"run.dir={folder / 'run'}", "train.iterations=1", "checkpoint.every=1")
    assert trainer.train(config) == 0
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of data and run, at another place."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = copy / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(folder), str(copy)))
    return copy / "run"


def checkpoint(run: Path, step: int) -> Checkpoint:
    return CheckpointStore(run / "checkpoints", 0).load(step)


def edit_state(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the state of the first checkpoint, as another version would have written it."""
    step = run / "checkpoints" / "step_000001"
    state = json.loads((step / "state.json").read_text())
    change(state)
    (step / "state.json").write_text(json.dumps(state))
    commit = json.loads((step / "COMMIT.json").read_text())
    size = (step / "state.json").stat().st_size
    commit["files"]["state.json"] = {"sha256": file_sha256(step / "state.json"), "bytes": size}
    (step / "COMMIT.json").write_text(json.dumps(commit))


def events(run: Path) -> dict[str, str]:
    lines = read_metrics(run / "metrics.jsonl")
    return {str(line["event"]): str(line["message"]) for line in lines if line["kind"] == "event"}


def test_a_longer_run_trains_as_if_it_had_been_meant_longer(run: Path, recipe: Recipe) -> None:
    assert trainer.resume(run, overrides=["train.iterations=2"]) == 0
    assert json.loads((run / "summary.json").read_text())["iterations"] == 2
    whole = load_config(str(run / "config.yaml"), [f"run.dir={run.parent / 'whole'}"])
    assert whole.train.iterations == 2
    assert trainer.train(whole) == 0
    for entry, tensors in checkpoint(run.parent / "whole", 2).tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint(run, 2).tensors[entry][name], tensor), f"{entry}: {name}"
    assert events(run) == {}
    with pytest.raises(UserError, match=r"train\.iterations=1, but 2 are finished"):
        trainer.resume(run, overrides=["train.iterations=1"])


def test_everything_that_differs_is_listed_and_nothing_is_changed(run: Path) -> None:
    data = run.parent / "tb"
    rows = (data / "train.jsonl").read_text().splitlines()
    first, second = (json.loads(row)["references"][0] for row in rows)
    shutil.copy(data / second, data / first)
    changed = [rows[0], rows[1].replace('"prompt": "', '"prompt": "x ')]
    (data / "train.jsonl").write_text("\n".join(changed) + "\n")
    before = file_sha256(run / "config.yaml")
    with pytest.raises(UserError) as refused:
        trainer.resume(run, overrides=["train.iterations=2", "train.weight_decay=0.5"])
    lines = refused.value.message.splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "train.weight_decay",
        "data.train.rows",
        "data.train.images",
    ]
    assert "--allow-change data.train.images" in str(refused.value.hint)
    assert file_sha256(run / "config.yaml") == before


def test_an_allowed_change_takes_effect_and_is_recorded(run: Path) -> None:
    overrides = ["train.iterations=2", "train.weight_decay=0.5"]
    assert trainer.resume(run, overrides=overrides, allowed=["train.weight_decay"]) == 0
    saved = checkpoint(run, 2).state
    (options,) = [group["options"] for group in saved["optimizer"]["groups"]]
    assert options["weight_decay"] == 0.5
    (change,) = saved["changes"]
    assert (change["iteration"], change["key"], change["new"]) == (1, "train.weight_decay", 0.5)
    assert "train.weight_decay" in events(run)["changed"]
    assert load_config(str(run / "config.yaml")).train.weight_decay == 0.5


def test_a_base_of_other_weights_is_refused_and_when_allowed_measured_anew(run: Path) -> None:
    key = "model.files.transformer/config.json"

    def change(state: dict[str, Any]) -> None:
        assert key in state["contents"]
        state["contents"][key] = "other"

    edit_state(run, change)
    with pytest.raises(UserError, match=f"{key}: other in the checkpoint"):
        trainer.resume(run, overrides=["train.iterations=2"])
    assert trainer.resume(run, overrides=["train.iterations=2"], allowed=["model.files"]) == 0
    assert "measured again" in events(run)["evaluation"]
    assert (run / "evaluations-until-000001-1" / "iteration_000001.json").is_file()
    evaluated = [line["iteration"] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "eval"]
    assert sorted(int(number or 0) for number in evaluated) == [0, 2]


def test_a_base_whose_scores_a_power_cut_took_is_measured_again_and_not_guessed(
    run: Path, folder: Path
) -> None:
    """Red before: the tuned policy was measured and called the base, so that every change was 0."""
    (run / "metrics.jsonl").write_bytes(b"")
    base = json.loads((run / "summary.json").read_text())["base"]
    with pytest.raises(UserError, match="lines of training in metrics.jsonl are missing"):
        trainer.resume(run, overrides=["train.iterations=2"])
    assert trainer.resume(run, overrides=["train.iterations=2"], allowed=["metrics"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["base"] == base != summary["tuned"]


def test_a_checkpoint_without_fingerprints_goes_on_and_says_what_was_not_checked(run: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        del state["contents"], state["changes"]
        state["versions"]["torch"] = "1.0"

    edit_state(run, change)
    assert trainer.resume(run, overrides=["train.iterations=2"], allowed=["data"]) == 0
    assert "could not be checked" in events(run)["unchecked"]
    assert events(run)["versions"].startswith("torch: 1.0 in the checkpoint, ")
