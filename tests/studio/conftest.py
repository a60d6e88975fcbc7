"""A run of seconds with everything that a run writes, and folders with copies of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from children import in_child
from commands import status


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two-scale: six iterations, three evaluations."""
    folder = tmp_path_factory.mktemp("studio") / "trained"
    settings = [
        f"run.dir={folder}",
        "train.iterations=6",
        "evaluation.every=3",
        "evaluation.samples_per_prompt=1",
        "checkpoint.every=3",
        "checkpoint.keep=9",
    ]
    # in a process of its own: one that lives on would count as the trainer
    assert in_child(lambda: status("train", "two-scale", *settings)) == 0
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A folder with the runs "done", which has ended, and "half", which was stopped after iteration 3."""
    folder = tmp_path / "runs"
    shutil.copytree(trained, folder / "done")
    shutil.copytree(trained, folder / "half")
    (folder / "half" / "summary.json").unlink()
    shutil.rmtree(folder / "half" / "checkpoints" / "step_000006")
    config = folder / "half" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 7", 1))
    return folder
