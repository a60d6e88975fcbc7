"""The benchmark of the overhead runs and accounts for its time; the time itself is nothing to assert."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "measurements" / "overhead.py"


def test_the_overhead_benchmark_measures_every_part_of_an_iteration(tmp_path: Path) -> None:
    numbers = tmp_path / "overhead.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "toybox-smoke", "--iterations", "1", "--limit", "1"]
        + ["--json", str(numbers)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(numbers.read_text())
    assert sum(result["seconds"].values()) == pytest.approx(result["seconds_per_iteration"])
    assert 0 < result["overhead_share"] < 1
    assert all(seconds > 0 for seconds in result["seconds"].values()), result["seconds"]
    assert "model backward" in done.stdout
