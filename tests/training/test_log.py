"""What becomes of the log of a run when the disk refuses a line."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from customized_grpo.config import Config
from customized_grpo.engine.engine import Engine
from customized_grpo.reporting.metrics import MetricsWriter, read_metrics
from customized_grpo.runs.folder import RunFolder
from customized_grpo.training.log import RunLog
from customized_grpo.training.state import RunState

Recipe = Callable[..., Config]


def test_why_a_reward_failed_in_another_process_is_written_down(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "gather_json", lambda _, mine: [mine, ["clip_t: no memory"]])
    log = RunLog(recipe(), RunFolder(tmp_path), RunState(), Engine(torch.device("cpu")))
    with log.open():
        log.failures(["dino: no memory"])
    events = read_metrics(tmp_path / "metrics.jsonl")
    assert {event["event"] for event in events} == {"reward failed"}
    assert [event["message"] for event in events] == ["dino: no memory", "clip_t: no memory"]


@pytest.mark.parametrize("meet", [RunLog.check, RunLog.sync])
def test_a_refused_line_is_raised_where_all_processes_meet(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meet: Callable[[RunLog], None]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = RunLog(recipe(), RunFolder(tmp_path), RunState(), Engine(torch.device("cpu")))
    with log.open():
        log.write("event", {"event": "note", "message": "a"})
        meet(log)
        with monkeypatch.context() as patch:
            patch.setattr(MetricsWriter, "write", refuse)
            log.write("event", {"event": "note", "message": "b"})  # the main process goes on to the exchange
        log.write("event", {"event": "note", "message": "c"})  # a line after a lost one would hide the gap
        with pytest.raises(OSError, match="No space left"):
            meet(log)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
