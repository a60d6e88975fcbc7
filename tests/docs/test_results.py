"""Every number in the tables of results is what the committed runs give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
BETWEEN = ("customized-grpo", "tdw", "tdw-sharp-sars", "tdw-calibrated-sars")
"""The methods whose margins docs/results.md compares."""


@pytest.mark.parametrize(("name", "options"), [("toybox", ["--runs"]), ("two-scale", [])])
def test_the_tables_of_results_are_those_of_the_committed_runs(name: str, options: list[str]) -> None:
    script = REPOSITORY / "docs" / "figures" / "results_tables.py"
    results = REPOSITORY / "docs" / "results" / f"{name}.json.gz"
    call = [sys.executable, str(script), str(results), *options, "--between", *BETWEEN]
    rows = subprocess.run(call, capture_output=True, text=True, check=True).stdout.split("\n")
    page = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8").split("\n")
    printed = [row for row in rows if row]
    assert len(printed) > 10
    assert [row for row in printed if row not in page] == []
