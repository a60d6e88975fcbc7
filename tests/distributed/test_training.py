"""Training in two processes is training in one: the same samples, gradients, metrics and evaluations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from close_runs import assert_close_tensors, assert_same_numbers, last_checkpoint, lines
from forked import cgrpo

pytestmark = pytest.mark.slow

# What depends on the whole batch: whitening over it, two updates of two groups, an average, the frozen base.
RECIPE = [
    "train.iterations=2",
    "train.prompts_per_iteration=4",
    "train.updates_per_iteration=2",
    "train.ema_decay=0.5",
    "train.kl_weight=0.01",
    "advantage.name=gdpo",
    "rollout.batch_size=2",
    "train.micro_batch_size=2",
    "evaluation.every=1",
    "evaluation.samples_per_prompt=2",
    "data.held_out_subjects=3",  # an odd number for two processes
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


def train(processes: int, folder: Path, *overrides: str) -> Path:
    status, printed = cgrpo(processes, "train", "toybox-smoke", f"run.dir={folder}", *RECIPE, *overrides)
    assert status == 0, printed
    assert printed.count("report: ") == 1, "only the main process says where the report is"
    return folder


@pytest.fixture(scope="module")
def one(runs: Path) -> Path:
    return train(1, runs / "one")


@pytest.fixture(scope="module")
def two(runs: Path) -> Path:
    return train(2, runs / "two")


@pytest.fixture(scope="module")
def half_of_two(runs: Path) -> Path:
    """The first of two iterations, in a folder that says it is to have two."""
    run = train(2, runs / "half_of_two", "train.iterations=1")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("iterations: 1\n", "iterations: 2\n"))
    (run / "summary.json").unlink()
    return run


def assert_same_run(run: Path, expected: Path) -> None:
    assert_same_numbers(lines(run), lines(expected))
    ours, theirs = last_checkpoint(run), last_checkpoint(expected)
    assert ours.tensors["adapter"].keys() == theirs.tensors["adapter"].keys()
    assert_close_tensors(ours, theirs, ("adapter", "average"))
    evaluations = [json.loads((r / "evaluations/iteration_000002.json").read_text()) for r in (run, expected)]
    assert evaluations[0]["ids"] == evaluations[1]["ids"]
    assert len(evaluations[0]["ids"]) == 6
    for row in range(3):
        images = [Image.open(r / f"samples/iteration_000002/{row:02d}.png") for r in (run, expected)]
        left, right = (torch.tensor(list(image.tobytes())) for image in images)
        assert (left - right).abs().max() <= 2, "of 255"


def test_the_first_gradients_are_equal_to_round_off(one: Path, two: Path) -> None:
    """Adam divides by its own size what it sums, so that the second moments show gradients as they were."""
    ours, theirs = (last_checkpoint(run).tensors["optimizer"] for run in (two, one))
    for name, tensor in theirs.items():
        if name.endswith("exp_avg_sq"):
            scale = tensor.abs().max()
            assert (ours[name] - tensor).abs().max() <= 1e-3 * scale, name


def test_two_processes_train_what_one_trains(one: Path, two: Path) -> None:
    assert_same_run(two, one)
    assert json.loads((two / "summary.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    "settings", [(), ("model.last_block=image", "model.gradient_checkpointing=true")], ids=["plain", "cut"]
)
def test_a_base_split_over_two_processes_trains_the_same(
    runs: Path, two: Path, settings: tuple[str, ...]
) -> None:
    sharded = train(2, runs / f"sharded{len(settings)}", "model.shard=true", *settings)
    assert_same_run(sharded, two)
    exported = [load_file(run / "lora" / "pytorch_lora_weights.safetensors") for run in (sharded, two)]
    assert exported[0].keys() == exported[1].keys()


@pytest.mark.parametrize("processes", [2, 1])
def test_a_run_of_two_processes_goes_on_in_two_exactly_or_in_one_with_a_note(
    runs: Path, half_of_two: Path, two: Path, processes: int
) -> None:
    run = runs / f"resumed_by_{processes}"
    shutil.copytree(half_of_two, run)
    status, printed = cgrpo(processes, "resume", str(run))
    assert status == 0, printed
    if processes == 2:
        ours, theirs = last_checkpoint(run), last_checkpoint(two)
        for entry, tensors in theirs.tensors.items():
            for name, tensor in tensors.items():
                assert torch.equal(ours.tensors[entry][name], tensor), f"{entry}: {name}"
        assert lines(run) == lines(two)
        return
    (note,) = [line for line in lines(run) if line["kind"] == "event"]
    assert "saved by 2 processes, resumed by 1" in str(note["message"])
    without = [line for line in lines(run) if line["kind"] != "event"]
    assert_same_numbers(without, lines(two))


def test_a_disk_that_refuses_the_main_process_ends_both_with_its_message(
    half_of_two: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(half_of_two, tmp_path / "run"))
    (run / "schedule.json").unlink()
    (run / "schedule.json").mkdir()
    status, printed = cgrpo(2, "resume", str(run))
    assert status == 2
    assert printed.count("error: ") == 1 and "schedule.json: exists and is not an ordinary file" in printed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.prompts_per_iteration=3"], "prompts_per_iteration=3 cannot be shared by 2 processes"),
        (["model.device=cpu", "model.shard=true", "model.quantisation=nf4"], "shard splits plain weights"),
    ],
)
def test_what_two_processes_cannot_do_is_refused_before_anything_is_written(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    status, printed = cgrpo(2, "train", "toybox-smoke", f"run.dir={tmp_path / 'run'}", *overrides)
    assert status != 0
    assert message in printed
    assert not (tmp_path / "run").exists()


def test_splitting_over_one_process_is_refused(tmp_path: Path) -> None:
    status, printed = cgrpo(1, "train", "toybox-smoke", f"run.dir={tmp_path / 'run'}", "model.shard=true")
    assert status == 2
    assert "needs several processes" in printed
    assert not (tmp_path / "run").exists()
