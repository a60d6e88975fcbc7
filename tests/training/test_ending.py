"""A run writes down why it ended, and hides what a foreign error says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.engine.interrupts import Interrupted
from customized_grpo.errors import UserError
from customized_grpo.training.ending import noted_ending


def ended(folder: Path) -> Any:
    return json.loads((folder / "ended.json").read_text())


@pytest.mark.parametrize(
    ("error", "how", "reason"),
    [
        (Interrupted(143), "interrupted", "SIGTERM"),
        (Interrupted(130), "interrupted", "Ctrl-C (SIGINT)"),
        (UserError("a reward failed", hint="Repair it."), "stopped", "a reward failed"),
        (RuntimeError("key=secret"), "failed", "RuntimeError, see the end of its output"),
        (KeyboardInterrupt(), "failed", "KeyboardInterrupt, see the end of its output"),
    ],
)
def test_every_way_to_end_is_noted_and_goes_on(
    tmp_path: Path, error: BaseException, how: str, reason: str
) -> None:
    with pytest.raises(type(error)), noted_ending(tmp_path, is_writer=True):
        raise error
    assert ended(tmp_path) == {"how": how, "reason": reason}


def test_one_process_writes_and_a_good_end_is_no_ending(tmp_path: Path) -> None:
    with noted_ending(tmp_path, is_writer=True):
        pass
    with pytest.raises(Interrupted), noted_ending(tmp_path, is_writer=False):
        raise Interrupted(143)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_does_not_hide_the_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="disk"), noted_ending(tmp_path / "gone", is_writer=True):
        raise UserError("the disk is full")
