"""The scaling benchmark measures its cases once, in one process and in two, and goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from processes import run_python

SCRIPT = Path(__file__).parents[2] / "measurements" / "scaling.py"


@pytest.mark.slow
def test_the_tiny_form_measures_every_case_once_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    done = run_python(SCRIPT, "--tiny", "--iterations=1", f"--out={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())["cases"]
    assert [(case["values"]["group size"], case["values"]["processes"]) for case in results] == [
        (2, 1),
        (3, 1),
        (2, 2),
    ]
    for case in results:
        assert min(case["iteration_cpu_s"], case["evaluation_cpu_s"], case["peak_mb"]) > 0, case
    table = out.with_suffix(".md").read_text()
    assert table in done.stdout
    assert [line.split("|")[1:3] for line in table.splitlines()[2:]] == [
        [" group size ", " 2 "],
        [" group size ", " 3 "],
        [" processes ", " 1 "],
        [" processes ", " 2 "],
    ]
    del results[1]
    results[0]["peak_mb"] = 12345
    out.write_text(json.dumps({"cases": results}))
    again = run_python(SCRIPT, "--tiny", "--iterations=1", f"--out={out}")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("'case'") == 1 and "12345" in again.stdout
    assert len(json.loads(out.read_text())["cases"]) == 3
