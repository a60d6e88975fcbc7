"""Slurm signals the launcher and its workers, and the launcher passes it on: one stop that comes twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from customized_grpo.engine.interrupts import SAME_STOP_S
from processes import HELPERS, run_python
from same_run import steps

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("apart", "saved"), [(0.0, [0]), (SAME_STOP_S + 0.5, [])])
def test_a_stop_that_comes_twice_is_saved_and_a_later_second_one_ends_at_once(
    tmp_path: Path, apart: float, saved: list[int]
) -> None:
    run = tmp_path / "run"
    done = run_python(HELPERS / "stopped_twice.py", apart, "train", "toybox-smoke", f"run.dir={run}")
    assert done.returncode == 143, done.stderr
    assert ("interrupted; continue with" in done.stderr) is bool(saved)
    assert steps(run) == saved
