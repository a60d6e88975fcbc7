"""A training that is killed again and again while it saves ends as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from processes import run_script
from same_run import assert_same_run, steps

pytestmark = pytest.mark.slow

# One group of two small samples an iteration: what is killed is the saving.
RECIPE = [
    "train.iterations=11",
    "train.prompts_per_iteration=1",
    "train.group_size=2",
    "rollout.steps=3",
    "rollout.batch_size=2",
    "train.micro_batch_size=2",
    "train.ema_decay=0.5",
]


def test_killed_in_its_saves_and_resumed_each_time_a_run_loses_nothing(tmp_path: Path) -> None:
    counts = json.loads(run_script("kill_loop.py", tmp_path, *RECIPE).splitlines()[-1])
    print(counts)
    assert counts["kills"] >= 15
    assert counts["before_commit"] >= 5 and counts["after_commit"] >= 5
    assert counts["losses"] == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert {path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()} == {
        f"step_{step:06d}" for step in steps(tmp_path / "whole")
    }, "leftovers of killed saves"
