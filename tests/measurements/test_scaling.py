"""The scaling benchmark measures a case once, goes on where it stopped, and compares with its base case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import scaling


def figures(case: scaling.Case) -> dict[str, Any]:
    seconds = float(case.values["prompts"] * case.values["group size"])
    return {
        "case": case.name,
        "values": case.values,
        "iteration_cpu_s": seconds,
        "evaluation_cpu_s": 1.0,
        "peak_mb": 600,
        "wall_s": 9.0,
    }


def test_every_axis_has_the_base_case_which_is_measured_once() -> None:
    found = scaling.cases(scaling.BASE, scaling.AXES, 2)
    assert len({case.name for case in found}) == len(found) == 1 + 2 * len(scaling.AXES)
    assert all(values[0] == scaling.BASE[axis] for axis, values in scaling.AXES.items())


def test_what_is_measured_is_kept_and_the_table_compares_with_the_base_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scaling.json"
    measured: list[str] = []

    def measure(case: scaling.Case) -> dict[str, Any]:
        if len(measured) == 2:
            raise RuntimeError("stopped")
        measured.append(case.name)
        return figures(case)

    monkeypatch.setattr(scaling, "measure", measure)
    with pytest.raises(RuntimeError, match="stopped"):
        scaling.main(["--out", str(out), "--axes", "group size", "prompts"])
    first = list(measured)
    measured.clear()
    monkeypatch.setattr(scaling, "measure", lambda case: measured.append(case.name) or figures(case))
    scaling.main(["--out", str(out), "--axes", "group size", "prompts"])
    assert len(first) == 2 and len(measured) == 3 and not set(first) & set(measured)
    rows = [line.split(" | ")[:4] for line in out.with_suffix(".md").read_text().splitlines()[2:]]
    assert rows == [
        ["| group size", "4", "16.00", "1.00"],
        ["| group size", "8", "32.00", "2.00"],
        ["| group size", "12", "48.00", "3.00"],
        ["| prompts", "4", "16.00", "1.00"],
        ["| prompts", "8", "32.00", "2.00"],
        ["| prompts", "16", "64.00", "4.00"],
        *[[f"| {axis}", str(scaling.BASE[axis]), "16.00", "1.00"] for axis in list(scaling.AXES)[2:]],
    ]
