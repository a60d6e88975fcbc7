"""The disk, and what lies on it: full, read-only, damaged, in use, or of another run."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from customized_grpo.cli.main import main
from customized_grpo.config import Config
from customized_grpo.errors import UserError
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.runs.lock import RunLock
from customized_grpo.training import parts, trainer
from customized_grpo.training.trainer import Trainer
from same_run import assert_same_run, lines, steps

pytestmark = pytest.mark.slow

Recipe = Callable[..., Config]
SMALL = [
    "train.iterations=4",
    "train.prompts_per_iteration=1",
    "train.group_size=2",
    "rollout.steps=3",
    "rollout.batch_size=2",
    "train.micro_batch_size=2",
    "evaluation.every=2",
    "checkpoint.keep=9",
]
CHECKPOINT = 770_000  # bytes of one, a little more than it takes


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own, for two checkpoints and all else that a run writes, but not for three."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", f"size={int(2.7 * CHECKPOINT)}", "cgrpo-test", str(folder))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this root cannot mount: {error.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    """A run that met no fault."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert trainer.train(recipe(*SMALL, f"run.dir={folder}")) == 0
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# Full


def test_a_disk_that_is_full_in_a_save_costs_nothing_that_was_saved(
    disk: Path, whole: Path, recipe: Recipe
) -> None:
    run = disk / "run"
    with pytest.raises(UserError) as refused:
        trainer.train(recipe(*SMALL, f"run.dir={run}"))
    assert f"cannot save checkpoint {run / 'checkpoints' / 'step_000003'} (" in refused.value.message
    assert "bytes are free there" in refused.value.message
    assert os.strerror(errno.ENOSPC) in refused.value.message
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step_000001", "step_000002"}
    mount("-o", "remount,size=16m", str(disk))
    assert trainer.resume(run) == 0
    assert_same_run(run, whole)


def test_a_disk_that_is_full_elsewhere_is_one_message_too(
    disk: Path, whole: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, filler = disk / "run", disk / "filler"
    evaluate = Trainer.evaluate

    def fill_and_evaluate(self: Trainer) -> None:
        if self.iteration == 2:
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), filler.open("wb", 0) as file:
                while True:
                    file.write(bytes(4096))
        evaluate(self)

    monkeypatch.setattr(Trainer, "evaluate", fill_and_evaluate)
    with pytest.raises(UserError) as refused:
        trainer.train(recipe(*SMALL, f"run.dir={run}"))
    assert "cannot write to" in refused.value.message and str(run) in refused.value.message
    assert os.strerror(errno.ENOSPC) in refused.value.message
    assert "0 bytes are free there" in refused.value.message
    assert refused.value.hint is not None and f"cgrpo resume {run}" in refused.value.hint
    monkeypatch.undo()
    filler.unlink()
    mount("-o", "remount,size=16m", str(disk))
    assert trainer.resume(run) == 0
    assert_same_run(run, whole)


# Read-only


def test_a_read_only_folder_is_refused_before_anything_loads(
    disk: Path, run: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mount("-o", "remount,size=16m", str(disk))
    old = Path(shutil.copytree(run, disk / "old"))
    mount("-o", "remount,ro", str(disk))
    monkeypatch.setattr(parts, "build_policy", lambda *_: pytest.fail("a model was loaded"))
    assert main(["resume", str(old)]) == 2
    assert f"cannot lock run folder {old}: {os.strerror(errno.EROFS)}" in capsys.readouterr().err
    monkeypatch.undo()
    with pytest.raises(UserError, match=f"cannot write run folder .*: {os.strerror(errno.EROFS)}"):
        trainer.train(recipe(*SMALL, f"run.dir={disk / 'new'}"))


def test_a_disk_that_takes_no_checkpoint_is_found_before_the_first_iteration(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if is_folder and "checkpoints" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    monkeypatch.setattr(Trainer, "fit", lambda _: pytest.fail("it began to train"))
    run = tmp_path / "run"
    with pytest.raises(UserError, match=f"checkpoints cannot be saved in {run / 'checkpoints'}"):
        trainer.train(recipe(*SMALL, f"run.dir={run}"))


# Damaged


def test_a_flipped_byte_is_refused_and_an_older_step_goes_on_to_the_same_end(
    run: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = run / "checkpoints" / "step_000004" / "adapter.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    before = names(run)
    assert main(["resume", str(run)]) == 2
    message = capsys.readouterr().err
    assert f"checkpoint file {weights} is damaged: its sha256 differs" in message
    assert "steps 3, 2, 1" in message and "--from 3" in message
    assert names(run) == before
    with pytest.raises(SystemExit) as left:
        main(["resume", str(run), "--from", "1"])
    assert left.value.code == 0
    assert_same_run(run, whole)
    kept = {path.name for path in (run / "checkpoints").iterdir() if path.name.startswith("abandoned")}
    assert kept == {f"abandoned-1-step_{step:06d}" for step in (2, 3, 4)}


def test_going_back_to_a_step_that_is_not_there_changes_nothing(run: Path) -> None:
    before = names(run)
    with pytest.raises(UserError, match="no committed checkpoint of step 9; committed steps: 4, 3, 2, 1"):
        trainer.resume(run, 9)
    assert names(run) == before


# Of another run


def test_checkpoints_of_another_run_are_refused_with_the_difference(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1", 1))
    before, said = names(run), lines(run)
    with pytest.raises(UserError, match="cannot resume exactly") as refused:
        trainer.resume(run, 1)
    assert "run.seed: 0 in the checkpoint, 1 now" in refused.value.message
    assert names(run) == before and lines(run) == said and steps(run) == [1, 2, 3, 4]


# In use


def test_a_second_trainer_is_told_of_the_first_and_touches_nothing(
    run: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names(run)
    overwrite = recipe(*SMALL, f"run.dir={run}", "run.overwrite=true")
    with RunLock(run):
        monkeypatch.setattr(trainer, "Trainer", lambda *_: pytest.fail("it began to train"))
        for begin in (lambda: trainer.resume(run), lambda: trainer.train(overwrite)):
            with pytest.raises(UserError, match=f"another process is training in .*{os.getpid()}"):
                begin()
    assert names(run) == before
    assert CheckpointStore(run / "checkpoints", 0).latest() == 4
