"""Whole runs on ToyBox: exact resume, what a run folder holds, and the ways in which a run stops."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import forked
from customized_grpo.config import Config
from customized_grpo.errors import UserError
from customized_grpo.evaluation import held_out
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.policies.lora import load_average
from customized_grpo.reporting.metrics import Record, read_metrics
from customized_grpo.runs.checkpoints import Checkpoint, CheckpointStore
from customized_grpo.training import evaluate as evaluation
from customized_grpo.training import parts, trainer
from customized_grpo.training.trainer import Trainer

pytestmark = pytest.mark.slow

Recipe = Callable[..., Config]
LAST = 3
# All state there is: moments of Adam, an average, a warm-up, alarms, and evaluations between the ends.
RECIPE = [
    f"train.iterations={LAST}",
    "train.ema_decay=0.5",
    "train.warmup_iterations=2",
    "evaluation.use_ema=true",
    "evaluation.every=2",
    "rollout.batch_size=3",
    "train.micro_batch_size=3",
    "checkpoint.keep=9",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(runs: Path, recipe: Recipe) -> Path:
    """A run that nobody interrupted."""
    folder = runs / "finished"
    assert trainer.train(recipe(f"run.dir={folder}", *RECIPE)) == 0
    return folder


@contextmanager
def signal_after(iteration: int) -> Iterator[None]:
    """Send this process SIGTERM at the end of that iteration."""
    record = Trainer.record

    def record_and_signal(self: Trainer, *args: Any) -> None:
        record(self, *args)
        if self.iteration == iteration:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "record", record_and_signal)
        yield


def checkpoint(run: Path, step: int = LAST) -> Checkpoint:
    return CheckpointStore(run / "checkpoints", 0).load(step)


def steps(run: Path) -> list[int]:
    return CheckpointStore(run / "checkpoints", 0).steps()


def without_times(line: Record) -> Record:
    return {key: value for key, value in line.items() if not key.startswith(("time/", "wall_s"))}


def lines(run: Path) -> list[Record]:
    return [without_times(line) for line in read_metrics(run / "metrics.jsonl")]


def files(run: Path, *patterns: str) -> dict[str, bytes]:
    """Return what matches, but for the lock file, which says who had the run last."""
    matches = [path for pattern in patterns for path in run.glob(pattern)]
    found = [path for path in matches if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(run)): path.read_bytes() for path in found}


def assert_same_tensors(first: Checkpoint, second: Checkpoint) -> None:
    assert first.tensors.keys() == second.tensors.keys()
    for entry, group in first.tensors.items():
        assert group.keys() == second.tensors[entry].keys()
        for name, tensor in group.items():
            assert torch.equal(tensor, second.tensors[entry][name]), f"{entry}: {name}"


def assert_same_run(run: Path, reference: Path) -> None:
    """Compare everything a run leaves but its times."""
    ours, theirs = checkpoint(run), checkpoint(reference)
    assert_same_tensors(ours, theirs)
    for key in ("iteration", "rollouts", "skipped_in_a_row", "health", "history", "optimizer", "rewards"):
        assert ours.state[key] == theirs.state[key], key
    assert lines(run) == lines(reference)
    patterns = ("evaluations/*", "samples/**/*.*")
    assert files(run, *patterns) == files(reference, *patterns)
    exported, expected = (load_file(next((folder / "lora").iterdir())) for folder in (run, reference))
    assert exported.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in exported.items())
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, reference)]
    for summary in summaries:
        del summary["wall_s"]
    assert summaries[0] == summaries[1]


# Exact resume


@pytest.fixture(scope="module", params=range(1, LAST + 1))
def interrupted(request: pytest.FixtureRequest, runs: Path, recipe: Recipe) -> tuple[Path, int]:
    """A run that got SIGTERM at the end of an iteration, and that iteration."""
    folder = runs / f"after_{request.param}"
    with signal_after(request.param):
        assert trainer.train(recipe(f"run.dir={folder}", *RECIPE)) == 143
    return folder, request.param


def test_interrupted_after_any_iteration_and_resumed_equals_uninterrupted(
    interrupted: tuple[Path, int], finished: Path
) -> None:
    folder, iteration = interrupted
    assert steps(folder)[-1] == iteration
    assert not (folder / "summary.json").exists()
    assert json.loads((folder / "ended.json").read_text()) == {"how": "interrupted", "reason": "SIGTERM"}
    assert trainer.resume(folder) == 0
    assert not (folder / "ended.json").exists()
    assert_same_run(folder, finished)


@pytest.fixture(scope="module")
def signalled(runs: Path) -> dict[str, int]:
    """Exit status of `cgrpo train` by the place where a signal came, each in a process of its own."""
    forked.script("interrupted_train.py", runs, *RECIPE)
    statuses: dict[str, int] = json.loads((runs / "statuses.json").read_text())
    return statuses


@pytest.mark.parametrize(
    ("place", "status", "saved"),
    [
        ("term_in_first_rollout", 143, 0),
        ("term_in_reward", 143, 1),
        ("term_in_update", 143, 2),  # an update that has begun is finished
        ("int_in_rollout", 130, 1),
    ],
)
def test_a_signal_in_any_phase_is_saved_and_resumed_exactly(
    signalled: dict[str, int], runs: Path, finished: Path, place: str, status: int, saved: int
) -> None:
    assert signalled[place] == status
    assert steps(runs / place)[-1] == saved
    assert trainer.resume(runs / place) == 0
    assert_same_run(runs / place, finished)


def test_resuming_a_finished_run_changes_nothing(finished: Path) -> None:
    before, saved = lines(finished), files(finished, "evaluations/*", "checkpoints/*/*", "samples/**/*.*")
    assert trainer.resume(finished) == 0
    assert lines(finished) == before
    assert files(finished, "evaluations/*", "checkpoints/*/*", "samples/**/*.*") == saved


def copy_of(run: Path, folder: Path, change: Callable[[str], str] = str) -> Path:
    shutil.copytree(run, folder)
    config = folder / "config.yaml"
    config.write_text(change(config.read_text()))
    return folder


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert text.count(old) == 1, old
        return text.replace(old, new)

    return change


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("learning_rate: 0.0003", "learning_rate: 0.0004", "train.learning_rate: 0.0003"),
        ("group_size: 3", "group_size: 4", "train.group_size: 3"),
    ],
)
def test_resume_with_another_recipe_is_refused_with_the_difference(
    finished: Path, tmp_path: Path, old: str, new: str, field: str
) -> None:
    folder = copy_of(finished, tmp_path / "changed", replaced(old, new))
    before = files(folder, "**/*")
    with pytest.raises(UserError) as refused:
        trainer.resume(folder)
    assert f"{field} in the checkpoint, {new.split(': ')[1]} now" in refused.value.message
    assert "train.iterations" not in refused.value.message
    assert files(folder, "**/*") == before


def test_resume_may_train_longer_or_end_earlier(finished: Path, tmp_path: Path) -> None:
    longer = copy_of(finished, tmp_path / "longer", replaced("iterations: 3", "iterations: 4"))
    assert trainer.resume(longer) == 0
    assert steps(longer)[-1] == 4
    assert lines(longer)[: len(lines(finished))] == lines(finished)
    # stopped by hand after an iteration that was not due for an evaluation
    shorter = copy_of(finished, tmp_path / "shorter", replaced("iterations: 3", "iterations: 1"))
    CheckpointStore(shorter / "checkpoints", 0).rewind(1)
    assert trainer.resume(shorter) == 0
    assert [line["iteration"] for line in lines(shorter) if line["kind"] == "eval"] == [0, 1]
    assert json.loads((shorter / "summary.json").read_text())["iterations"] == 1


def test_a_run_may_be_moved_before_it_is_resumed(finished: Path, tmp_path: Path) -> None:
    moved = copy_of(finished, tmp_path / "moved")
    CheckpointStore(moved / "checkpoints", 0).rewind(2)
    assert trainer.resume(moved) == 0
    assert_same_run(moved, finished)


def test_resume_without_a_checkpoint_is_refused(finished: Path, tmp_path: Path) -> None:
    folder = copy_of(finished, tmp_path / "empty")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="no complete checkpoint"):
        trainer.resume(folder)
    assert not (folder / "checkpoints").exists(), "it must not start afresh"


# The run folder


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("something was loaded before the mistake was found")

    for name in ("build_data", "build_scorer", "build_policy"):
        monkeypatch.setattr(f"customized_grpo.training.parts.{name}", load)


@pytest.mark.usefixtures("nothing_loads")
def test_an_existing_run_is_not_touched_without_leave(finished: Path, recipe: Recipe) -> None:
    before = files(finished, "**/*")
    with pytest.raises(UserError, match="already holds a run") as refused:
        trainer.train(recipe(f"run.dir={finished}"))
    assert refused.value.hint is not None
    assert f"cgrpo resume {finished}" in refused.value.hint
    assert "run.overwrite=true" in refused.value.hint
    assert files(finished, "**/*") == before


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("content", [{"notes.txt": "mine"}, {"config.yaml": "run: {}\n", "main.py": ""}])
def test_overwrite_never_deletes_what_is_no_run(
    tmp_path: Path, recipe: Recipe, content: dict[str, str]
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    with pytest.raises(UserError, match="not the folder of a run"):
        trainer.train(recipe(f"run.dir={folder}", "run.overwrite=true"))
    assert {path.name: path.read_text() for path in folder.iterdir()} == content


@pytest.mark.usefixtures("nothing_loads")
def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="not the folder of a run"):
        trainer.train(recipe(f"run.dir={tmp_path / 'run'}", "run.overwrite=true"))
    assert (tmp_path / "run").read_text() == "mine"


PROMISED = {
    "train": [
        "reward/prompt",
        "reward/identity",
        "reward/prompt_group_std",
        "reward/identity_group_std",
        "score/dino",
        "score/dino/std",
        "score/dino/group_std",
        "score/dino/nan_share",
        "score/clip_t",
        "score/clip_t/nan_share",
        "advantage/conflict",
        "advantage/both_positive",
        "advantage/both_negative",
        "advantage/rho",
        "advantage/conflict_null",
        "policy/loss",
        "policy/ratio_mean",
        "policy/ratio_max_deviation",
        "policy/clip_fraction",
        "policy/grad_norm",
        "policy/learning_rate",
        "health/zero_std_groups",
        "health/nan_samples",
        "health/skipped_updates",
        "diversity/in_group",
        "time/rollout_s",
        "time/reward_s",
        "time/update_s",
        "time/iteration_s",
    ],
    "eval": [
        "judge/identity",
        "judge/prompt",
        "judge/prop",
        "judge/floor",
        "judge/sky",
        "judge/emblem",
        "judge/identity_low",
        "judge/identity_high",
        "judge/prompt_low",
        "judge/prompt_high",
        "reward/prompt",
        "reward/identity",
        "score/dino",
        "score/clip_t",
        "monitor/copy_score",
        "monitor/background_similarity",
        "monitor/saturation",
        "mode/good",
        "mode/copied",
        "mode/drift",
        "mode/other",
    ],
}


@pytest.mark.parametrize("kind", PROMISED)
def test_metrics_have_the_promised_names_in_every_line(finished: Path, kind: str) -> None:
    records = [line for line in read_metrics(finished / "metrics.jsonl") if line["kind"] == kind]
    expected = {"train": [1, 2, 3], "eval": [0, 2, 3]}[kind]
    assert [record["iteration"] for record in records] == expected
    for record in records:
        assert record.keys() >= {"kind", "iteration", "rollouts", "wall_s", *PROMISED[kind]}
        assert record["rollouts"] == 6 * int(record["iteration"] or 0)


def test_the_first_pass_of_every_iteration_of_a_run_has_ratio_exactly_1(finished: Path) -> None:
    records = [line for line in lines(finished) if line["kind"] == "train"]
    assert [record["policy/ratio_max_deviation"] for record in records] == [0.0] * LAST
    assert [record["policy/learning_rate"] for record in records] == pytest.approx([1.5e-4, 3e-4, 3e-4])


def test_the_shares_of_modes_add_up_to_1(finished: Path) -> None:
    for record in (line for line in lines(finished) if line["kind"] == "eval"):
        assert sum(float(record[f"mode/{m}"] or 0) for m in ("good", "copied", "drift", "other")) == 1.0


def test_a_run_folder_holds_everything(finished: Path) -> None:
    names = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    assert names >= {
        "config.yaml",
        "versions.json",
        "metrics.jsonl",
        "summary.json",
        "report.html",
        "lora/pytorch_lora_weights.safetensors",
        "samples/index.json",
        "samples/reference_00.png",
        "samples/target_00.png",
        *(f"samples/iteration_{i:06d}/{row:02d}.png" for i in (0, 2, 3) for row in (0, 1)),
        *(f"evaluations/iteration_{i:06d}.json" for i in (0, 2, 3)),
    }
    assert steps(finished) == [1, 2, 3]
    versions = json.loads((finished / "versions.json").read_text())
    assert versions.keys() >= {"customized_grpo", "python", "torch", "diffusers", "git"}
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["finished"] is True
    assert (summary["iterations"], summary["rollouts"], summary["seed"]) == (3, 18, 0)
    for part in ("base", "tuned", "difference"):
        assert summary[part]["judge/prompt"].keys() == {"mean", "low", "high"}


# Base, tuned, and the average


def test_evaluating_again_with_the_adapter_off_and_on_gives_the_numbers_of_the_run(finished: Path) -> None:
    """So the base was measured before the first update, and the tuned model is the one that was saved."""
    summary = json.loads((finished / "summary.json").read_text())
    again = evaluation.evaluate(finished)
    for part in ("base", "tuned", "difference"):
        assert again[part] == summary[part], part
    changes = [again["difference"][metric]["mean"] for metric in ("reward/prompt", "reward/identity")]
    assert any(changes), "the adapter does nothing, so that the test cannot tell base from tuned"


def test_what_is_exported_is_what_was_evaluated(finished: Path, recipe: Recipe) -> None:
    from customized_grpo.training.parts import build_policy

    saved = checkpoint(finished).tensors
    averaged: Flux1Policy = build_policy(recipe())
    load_average(averaged.trainable_parameters(), saved["average"])
    exported: Flux1Policy = build_policy(recipe())
    exported.load_lora(finished / "lora")
    for name, tensor in exported.adapter_tensors().items():
        assert torch.equal(tensor, averaged.adapter_tensors()[name]), name
    assert any(not torch.equal(saved["adapter"][name], t) for name, t in averaged.adapter_tensors().items())


# Stops


def test_a_run_stopped_by_bad_gradients_keeps_its_last_good_checkpoint(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Trainer.update

    def break_after_one(self: Trainer, *args: Any) -> Any:
        if self.iteration == 1:
            self.updater.parameters[0].register_hook(lambda gradient: gradient * float("inf"))
        return update(self, *args)

    monkeypatch.setattr(Trainer, "update", break_after_one)
    folder = tmp_path / "run"
    with pytest.raises(UserError, match="2 updates in a row"):
        trainer.train(recipe(f"run.dir={folder}", "train.iterations=5", "train.max_nonfinite_steps=1"))
    assert steps(folder) == [1, 2]
    assert checkpoint(folder, 2).state["skipped_in_a_row"] == 1
    first, second = checkpoint(folder, 1), checkpoint(folder, 2)
    assert_same_tensors(first, second)
    train_lines = [line for line in lines(folder) if line["kind"] == "train"]
    assert [line["health/skipped_updates"] for line in train_lines] == [0, 1]


@pytest.fixture
def constant_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An override that replaces the identity reward by one that likes every image equally."""
    (tmp_path / "constant_reward.py").write_text(
        "import torch\n"
        "from customized_grpo.rewards import FunctionReward\n"
        "def ones(batch): return torch.ones(len(batch))\n"
        "constant = FunctionReward('constant', 'identity', ones)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CGRPO_TRUST", "constant_reward")
    return 'rewards=[{name: "constant_reward:constant"}, {name: clip_t, segment: none, path: toybox}]'


def test_an_alarm_that_stops_saves_first_and_remembers_across_a_resume(
    tmp_path: Path, recipe: Recipe, constant_identity: str
) -> None:
    folder = tmp_path / "run"
    overrides = ["train.iterations=4", "evaluation.every=1", "evaluation.on_alarm=stop", constant_identity]
    with signal_after(1):  # alarms need two evaluations in a row: interrupted between them
        assert trainer.train(recipe(f"run.dir={folder}", *overrides)) == 143
    with pytest.raises(UserError, match="stopped by alarm") as stopped:
        trainer.resume(folder)
    assert stopped.value.hint is not None and f"cgrpo resume {folder}" in stopped.value.hint
    assert steps(folder)[-1] == 2
    ended = json.loads((folder / "ended.json").read_text())
    assert ended == {"how": "stopped", "reason": stopped.value.message}
    events = [line for line in lines(folder) if line["kind"] == "event"]
    assert {(event["event"], event["iteration"]) for event in events} == {("alarm", 2)}
    assert any("no spread in reward constant" in str(event["message"]) for event in events)


def test_one_held_out_subject_is_refused_before_training(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(UserError, match="held_out_subjects"):
        trainer.train(recipe(f"run.dir={tmp_path / 'run'}", "data.held_out_subjects=1"))
    assert not (tmp_path / "run").exists()


def test_evaluation_and_rollouts_share_one_noise_schedule(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception):
        pass

    seen: list[torch.Tensor] = []

    def look(*_: object, sigmas: torch.Tensor, **__: object) -> None:
        seen.append(sigmas)
        raise Seen

    build = parts.build_sampler

    def build_and_look(*arguments: Any) -> Any:
        sampler = build(*arguments)
        seen.append(sampler.sigmas)
        return sampler

    monkeypatch.setattr(held_out, "evaluate_policy", look)
    monkeypatch.setattr(parts, "build_sampler", build_and_look)
    with pytest.raises(Seen):
        trainer.train(recipe(f"run.dir={tmp_path / 'run'}"))
    assert torch.equal(*seen)
