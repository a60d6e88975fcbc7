"""What becomes of the log of a run when the disk refuses a line."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from customized_grpo.config import Config
from customized_grpo.engine.engine import Engine
from customized_grpo.reporting.metrics import MetricsWriter, read_metrics
from customized_grpo.runs.folder import RunFolder
from customized_grpo.training.log import RunLog
from customized_grpo.training.state import RunState
from customized_grpo.training.trainer import Trainer

Recipe = Callable[..., Config]


def test_why_a_reward_failed_in_another_process_is_written_down(recipe: Recipe, tmp_path: Path) -> None:
    log = RunLog(recipe(), RunFolder(tmp_path), RunState(), Engine(torch.device("cpu")))
    two = SimpleNamespace(gather_json=lambda mine: [mine, ["clip_t: no memory in process 1"]])
    scorer = SimpleNamespace(take_dropped=lambda: [])
    with log.open():
        Trainer.report_dropped(cast(Trainer, SimpleNamespace(engine=two, scorer=scorer, log=log)))
    (event,) = read_metrics(tmp_path / "metrics.jsonl")
    assert event["event"] == "reward failed" and event["message"] == "clip_t: no memory in process 1"


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
