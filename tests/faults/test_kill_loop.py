"""A training that is killed again and again while it saves ends as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import forked
from same_run import steps

pytestmark = pytest.mark.slow


def test_killed_in_its_saves_and_resumed_each_time_a_run_loses_nothing(tmp_path: Path) -> None:
    """`make soak` kills 500 times, at the start and anywhere too."""
    counts = json.loads(forked.script("kill_loop.py", tmp_path).splitlines()[-1])
    print(counts)
    assert counts["kills"] >= 15
    assert counts["before_commit"] >= 5 and counts["after_commit"] >= 5
    assert (counts["lost"], counts["stuck"], counts["different"]) == (0, 0, 0)
    assert {path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()} == {
        f"step_{step:06d}" for step in steps(tmp_path / "whole")
    }, "leftovers of killed saves"
