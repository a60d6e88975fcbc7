"""The start of a run is whole or not at all, whatever the instant of a kill."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from customized_grpo.config import Config
from customized_grpo.errors import UserError
from customized_grpo.runs import folder as run_folder
from customized_grpo.runs.folder import STARTING, RunFolder, is_run_folder, is_unused, runs_in
from customized_grpo.runs.lock import RunLock

Recipe = Callable[..., Config]
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}
KILLED = 77


@pytest.fixture(autouse=True)
def no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "versions", lambda: {"customized_grpo": "0"})


def start(config: Config) -> None:
    with RunLock(RunFolder.make(config.run.dir)):
        RunFolder.create(config)


def start_and_die(config: Config, instant: int) -> bool:
    """Start a run in a forked child that ends before its disk call of that number; return whether it did."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event in CHANGES:
                if count == instant:
                    os._exit(KILLED)
                count += 1

        sys.addaudithook(hook)
        start(config)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, KILLED)
    return status == KILLED


def old_run(path: Path, recipe: Recipe) -> None:
    start(recipe(f"run.dir={path}"))
    checkpoint = path / "checkpoints" / "step_000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMMIT.json").write_text("{}")


@pytest.mark.slow
@pytest.mark.parametrize("existing", ["nothing", "empty folder", "old run"])
def test_after_a_kill_at_any_disk_call_of_the_start_training_can_begin(
    tmp_path: Path, recipe: Recipe, existing: str
) -> None:
    instant = 0
    while True:
        path = tmp_path / f"run_{instant}"
        if existing == "empty folder":
            path.mkdir()
        if existing == "old run":
            old_run(path, recipe)
        overwrite = f"run.overwrite={str(existing == 'old run').lower()}"
        if not start_and_die(recipe(f"run.dir={path}", overwrite, "run.seed=7"), instant):
            break
        whole = is_run_folder(path)
        config = path / "config.yaml"
        if whole and existing == "old run":  # nothing of it is gone, or it is the new one
            is_new = "seed: 7" in config.read_text()
            assert is_new or (path / "checkpoints" / "step_000001" / "COMMIT.json").exists()
        assert whole or is_unused(path), "neither a run nor free"
        assert runs_in(tmp_path).count(path) == whole
        start(recipe(f"run.dir={path}", f"run.overwrite={str(whole).lower()}"))
        assert is_run_folder(path)
        names = {file.name for file in path.iterdir()}
        assert names == {"config.yaml", "started.json", "versions.json", "lock"}
        instant += 1
    assert instant > 10, "the start was not stopped often enough"


def test_a_marked_folder_is_free_and_a_foreign_one_is_not(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text("run: {}\n")
    config = recipe(f"run.dir={path}", "run.overwrite=true")
    with pytest.raises(UserError, match="not the folder of a run"):
        RunFolder.check_free(config)
    (path / STARTING).touch()
    RunFolder.check_free(recipe(f"run.dir={path}"))
    assert not is_run_folder(path)


def test_a_run_whose_versions_were_emptied_is_still_a_run(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "run"
    old_run(path, recipe)
    (path / "versions.json").write_text("")
    assert is_run_folder(path)
    with pytest.raises(UserError, match=r"versions\.json: not JSON"):
        RunFolder(path).read_json("versions.json")


def test_drafts_of_killed_writers_are_swept_and_nothing_else(tmp_path: Path, recipe: Recipe) -> None:
    config = recipe(f"run.dir={tmp_path / 'run'}")
    start(config)
    folder = RunFolder(config.run.dir)
    before = sorted(folder.path.rglob("*"))
    for name in (".plan.json.0123.draft", "evaluations/.iteration_000001.json.4567.draft"):
        draft = folder.path / name
        draft.parent.mkdir(exist_ok=True)
        draft.write_text("half")
    folder.sweep()
    (folder.path / "evaluations").rmdir()  # only the drafts were in it
    assert sorted(folder.path.rglob("*")) == before
