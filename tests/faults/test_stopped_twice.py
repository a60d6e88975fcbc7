"""Slurm signals the launcher and its workers, and the launcher passes it on: one stop that comes twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import forked
from customized_grpo.engine.interrupts import SAME_STOP_S
from same_run import steps

pytestmark = pytest.mark.slow

AT_ONCE = "0.0"
LATER = str(SAME_STOP_S + 0.5)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that were told to stop twice, by the seconds between the two signals."""
    folder = tmp_path_factory.mktemp("stopped")
    forked.script("stopped_twice.py", folder, AT_ONCE, LATER)
    assert json.loads((folder / "statuses.json").read_text()) == {AT_ONCE: 143, LATER: 143}
    return folder


def test_a_stop_that_comes_twice_is_saved(stopped: Path) -> None:
    assert "interrupted; continue with" in (stopped / f"{AT_ONCE}.txt").read_text()
    assert steps(stopped / AT_ONCE) == [0]


def test_a_later_second_stop_ends_at_once(stopped: Path) -> None:
    assert "interrupted; continue with" not in (stopped / f"{LATER}.txt").read_text()
    assert steps(stopped / LATER) == []
