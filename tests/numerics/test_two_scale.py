from __future__ import annotations

from pathlib import Path

import pytest

import two_scale
from customized_grpo.comparison.definitions import IDENTITY, PROMPT

pytestmark = pytest.mark.slow

OVERRIDES = ["train.iterations=75", "evaluation.every=0"]


def test_time_keeps_what_every_constant_weight_loses(tmp_path: Path) -> None:
    """At 75 iterations seed 0 gave -.13, -.53, -.53, +.46 and +.01 (AMD EPYC, 2026-11-28)."""
    arms = ["naive-0.3", "naive-0.5", "tdw", "tdw-inverse"]
    results = two_scale.compare(tmp_path / "runs", arms, seeds=1, overrides=OVERRIDES)
    base = results["analysis"]["base"]
    final = {arm["name"]: arm["final"] for arm in results["analysis"]["arms"]}

    def change(arm: str, metric: str) -> float:
        return final[arm][metric]["mean"] - base[metric]["mean"]

    assert change("naive-0.3", PROMPT) < -0.06
    assert change("naive-0.5", IDENTITY) < -0.25
    assert change("tdw-inverse", IDENTITY) < -0.25
    assert change("tdw", IDENTITY) > 0.25
    assert change("tdw", PROMPT) > -0.06
    assert "TDW only" in two_scale.table(results)
