"""Two processes share the images of a benchmark, and draw those that one draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from forked import cgrpo

pytestmark = pytest.mark.slow


def test_two_processes_draw_and_score_what_one_does(tmp_path: Path) -> None:
    status, printed = cgrpo(1, "toybox", "export", str(tmp_path / "toys"), "--subjects", "3")
    assert status == 0, printed
    manifest = tmp_path / "toys" / "manifest.jsonl"
    options = ["--data", str(manifest), "--encoder", "dino=toybox", "--limit", "5"]
    results = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        status, printed = cgrpo(
            processes, "benchmark", "run", "toybox", "manifest", "steps=2", *options, "--out", str(out)
        )
        assert status == 0, printed
        assert printed.count("results: ") == 1, "only the main process tells"
        results[processes] = json.loads((out / "results.json").read_text())
    status, printed = cgrpo(
        2, "benchmark", "run", "toybox", "manifest", "steps=1", *options, "--out", str(tmp_path / "2")
    )
    assert status == 2 and printed.count("holds images with other settings") == 1, printed
    assert results[1]["table"]["ids"] == results[2]["table"]["ids"]
    ours, theirs = (sorted((tmp_path / str(n) / "images").iterdir()) for n in (2, 1))
    assert [path.name for path in ours] == [path.name for path in theirs] and len(ours) == 5
    for left, right in zip(ours, theirs, strict=True):
        difference = ImageChops.difference(Image.open(left), Image.open(right))
        assert max(high for _, high in difference.getextrema()) <= 1, left.name
