"""What a checkpoint relies on is on the disk before the checkpoint is."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from customized_grpo.reporting.metrics import MetricsWriter, read_metrics
from customized_grpo.runs.folder import RunFolder
from customized_grpo.training.evaluator import Evaluator
from customized_grpo.training.trainer import Trainer


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files and folders that were synced, in order."""
    names: list[str] = []

    def fsync(descriptor: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "fsync", fsync)
    return names


def test_lines_are_synced_before_a_checkpoint_is_saved() -> None:
    calls: list[str] = []
    parts = SimpleNamespace(
        state=SimpleNamespace(seconds=0.0),
        log=SimpleNamespace(seconds=1.0, sync=lambda: calls.append("lines")),
        checkpoints=SimpleNamespace(save=lambda: calls.append("checkpoint")),
    )
    Trainer.save(cast(Trainer, parts))
    assert calls == ["lines", "checkpoint"]


def test_syncing_the_metrics_syncs_every_line(tmp_path: Path, synced: list[str]) -> None:
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        writer.write({"kind": "train", "iteration": 1})
        writer.sync()
        assert synced == ["metrics.jsonl"]
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_scores_and_their_name_are_synced(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("customized_grpo.training.evaluator.save_samples", lambda *_: None)
    engine = SimpleNamespace(from_main=lambda work: work())
    log = SimpleNamespace(images=lambda *_: None)
    evaluator = SimpleNamespace(engine=engine, folder=RunFolder(tmp_path), log=log)
    scores = SimpleNamespace(to_json=lambda: {"ids": []})
    Evaluator._keep(cast(Evaluator, evaluator), 3, cast(Any, scores), cast(Any, None))
    draft, folder = synced
    assert draft.startswith(".iteration_000003.json") and folder == "evaluations"


@pytest.mark.parametrize("tail", [b'{"kind": "tra', bytes(300), b"\x00\x00\n\x00\x00\n\x00", b"[]\n[1]\n"])
def test_a_tail_that_a_power_cut_left_is_cut(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write({"kind": "train", "iteration": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    MetricsWriter.open(path, upto_iteration=1).close()
    assert path.read_bytes() == whole
