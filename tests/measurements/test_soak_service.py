"""The soak of the reward service: a short one holds, and a broken promise is seen."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import soak_service
from processes import run_python

SCRIPT = Path(__file__).parents[2] / "measurements" / "soak_service.py"


@pytest.mark.slow
def test_a_short_soak_keeps_every_promise(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    done = run_python(SCRIPT, "--seconds", "6", "--clients", "14", "--json", numbers)
    figures = json.loads(numbers.read_text())
    assert done.returncode == 0, figures["broken"]
    assert figures["answers"] > 0 and figures["service"]["exit_status"] == 0
    assert {name.partition(":")[0] for name in figures["counts"]} >= {"honest", "wrong token", "huge image"}


def test_what_only_the_whole_shows_is_judged() -> None:
    soak = soak_service.Soak("", "", 0, "", answered=Counter({0: 3}))
    soak.expect("wrong token", 200, (401,))
    watch = soak_service.Watch([100.0, 100.0 + soak_service.MEMORY_MB + 1, 0.0])
    soak_service.judge(soak, watch, 2, None)
    text = " ".join(soak.broken)
    assert all(word in text for word in ("wrong token got status 200", "1 honest", "memory grew", "SIGTERM"))
