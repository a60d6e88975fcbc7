"""The benchmark of the overhead runs and accounts for its time; the time itself is nothing to assert."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import forked

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "measurements" / "overhead.py"


def test_the_overhead_benchmark_measures_every_part_of_an_iteration(tmp_path: Path) -> None:
    numbers = tmp_path / "overhead.json"
    options = ("--iterations", "1", "--limit", "1", "--json")
    done = forked.python(SCRIPT, "toybox-smoke", *options, numbers)
    assert done.returncode == 0, done.stderr
    result = json.loads(numbers.read_text())
    assert sum(result["seconds"].values()) == pytest.approx(result["seconds_per_iteration"])
    assert 0 < result["overhead_share"] < 1
    assert all(seconds > 0 for seconds in result["seconds"].values()), result["seconds"]
    assert "model backward" in done.stdout
