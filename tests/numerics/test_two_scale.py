from __future__ import annotations

from pathlib import Path

import pytest

import two_scale
from customized_grpo.comparison.definitions import IDENTITY, PROMPT

pytestmark = pytest.mark.slow


def test_time_keeps_what_every_constant_weight_loses(tmp_path: Path) -> None:
    arms = ["naive-0.4", "naive-0.5", "tdw", "tdw-inverse"]
    results = two_scale.compare(tmp_path / "runs", arms, seeds=1, overrides=["evaluation.every=0"])
    base = {metric: interval["mean"] for metric, interval in results["analysis"]["base"].items()}
    change: dict[str, dict[str, float]] = {}
    for arm in results["analysis"]["arms"]:
        change[arm["name"]] = {
            metric: interval["mean"] - base[metric] for metric, interval in arm["final"].items()
        }
    # margins: about half of what docs/results.md reports
    assert change["naive-0.4"][PROMPT] < -0.15
    assert change["naive-0.5"][IDENTITY] < -0.25
    assert change["tdw-inverse"][IDENTITY] < -0.25
    assert change["tdw"][IDENTITY] > 0.2
    assert change["tdw"][PROMPT] > -0.05
    assert "TDW only" in two_scale.table(results)
