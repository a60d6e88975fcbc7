"""Processes that share the drawing of a benchmark, without a second one: what they must have in common."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.benchmarks import run
from customized_grpo.benchmarks.run import BenchmarkRequest, process_values, run_benchmark
from customized_grpo.engine.engine import Engine
from customized_grpo.errors import UserError


@pytest.fixture
def benchmark(dreambench: Path) -> BenchmarkRequest:
    return BenchmarkRequest("toybox", "dreambench", dreambench, encoders=["dino=toybox"])


def test_another_command_or_installation_is_refused_before_anything_is_loaded(
    benchmark: BenchmarkRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = process_values(replace(benchmark, samples=2, settings=["steps=4"]), "other bytes")
    theirs["versions.torch"] = "1.0"

    def too_late(*_: Any, **__: Any) -> None:
        raise AssertionError("the model is loaded first")

    monkeypatch.setattr(Engine, "gather_json", lambda _, mine: [mine, theirs])
    monkeypatch.setattr(run, "open_generator", too_late)
    monkeypatch.setattr(run, "build_metric_rewards", too_late)
    with pytest.raises(UserError) as refused:
        run_benchmark(benchmark)
    message = refused.value.message
    assert "benchmark.samples: 1 in process 0, 2 in process 1" in message
    assert 'benchmark.settings: [] in process 0, ["steps=4"] in process 1' in message
    assert "benchmark.data: " in message and "versions.torch: " in message


def test_paths_may_differ_between_hosts(benchmark: BenchmarkRequest, tmp_path: Path) -> None:
    elsewhere = replace(benchmark, source="b", data=tmp_path / "b", out=tmp_path / "b", lora=tmp_path / "b")
    assert process_values(elsewhere, "same bytes") == process_values(benchmark, "same bytes")
