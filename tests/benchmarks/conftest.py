"""Photos and rows for the tests of benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from customized_grpo.benchmarks.rows import BenchmarkRow
from dreambooth import save_dreambooth, save_photo


@pytest.fixture
def dreambench(tmp_path: Path) -> Path:
    """Three subjects in the layout of DreamBooth's repository."""
    return save_dreambooth(tmp_path / "dreambooth")


@pytest.fixture
def rows(tmp_path: Path) -> list[BenchmarkRow]:
    """Three rows about three subjects; ids that are no file names."""
    made = []
    for n, name in enumerate(("a/b", "..", "x" * 300)):
        reference = save_photo(tmp_path / "photos" / f"{n}.png", (250, 80 * n, 100))
        other = save_photo(tmp_path / "photos" / f"{n}-other.png", (90 * n, 30, 220))
        row = BenchmarkRow(
            name, f"a toy {n}", (reference,), (reference, other), (), f"s{n}", "object", "recontext"
        )
        made.append(row)
    return made
