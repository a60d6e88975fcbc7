"""The GPU benchmark on small models on the CPU: same code, and memory as planned; times prove nothing."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import forked
import gpu
from random_models import text_encoder_shells

pytestmark = pytest.mark.slow

# both families, nf4, classifier-free guidance; the compiler is tests/policies/test_compile.py's
CASES = ["flux1-24gb", "klein"]
TOLERANCE = 0.08
"""Largest relative error of a planned peak; .067 was seen, in nf4, whose code tables count here."""


def measure(*options: str, processes: Any = forked.SUBPROCESS) -> tuple[int, str]:
    """Measure, each case in a process of `processes`; return the status and what was printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(printed):
        patched.setattr(gpu, "subprocess", processes)
        status = gpu.main(["--tiny", *options])
    return status, printed.getvalue()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], str]:
    """The numbers of two cases, and what was printed."""
    out = tmp_path_factory.mktemp("gpu") / "results.json"
    # Fresh interpreters: what a fork has from its parent is not counted in the peaks.
    status, printed = measure("--device=cpu", f"--out={out}", "--cases", *CASES, processes=subprocess)
    assert status == 0, printed
    return json.loads(out.read_text()), printed


def test_every_case_is_measured_in_all_its_phases(measured: tuple[list[Any], str]) -> None:
    results, printed = measured
    assert [result["case"] for result in results] == CASES
    for result in results:
        assert set(result["seconds"]) == {"encode", "rollout", "decode", "update", "optimizer step"}
        assert all(seconds > 0 for seconds in result["seconds"].values())
        assert result["iteration_s"] == pytest.approx(sum(result["seconds"].values()))
        assert result["images_per_s"] == pytest.approx(12 / result["iteration_s"])
        assert result["samples"] == 12 and result["one_by_one_s"] > 0
        assert result["matmul_tflops"] > 0 and all(rate > 0 for rate in result["tflops"].values())
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(CASES) and len({row.count("|") for row in rows}) == 1


def test_rollout_and_training_agree(measured: tuple[list[Any], str]) -> None:
    for result in measured[0]:
        assert result["ratio_deviation"]["same batches"] == 0
        assert result["ratio_deviation"]["one by one"] < 1e-3


def test_a_whole_iteration_takes_the_memory_that_was_planned(measured: tuple[list[Any], str]) -> None:
    for result in measured[0]:
        for phase in ("encode", "rollout", "decode", "update"):
            found = result["peaks"][phase]
            assert found["measured"] == pytest.approx(found["planned"], rel=TOLERANCE), (
                result["case"],
                phase,
            )


def test_a_case_that_fails_is_told_and_leaves_the_others_alone(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    status, printed = measure("--device=nowhere", f"--out={out}", "--cases", *CASES)
    assert status == 1
    results = json.loads(out.read_text())
    assert [result["case"] for result in results] == CASES
    assert all("nowhere" in result["error"] for result in results)
    assert all(f"{case}: " in printed for case in CASES)


def test_cases_for_which_no_time_is_left_are_told() -> None:
    status, printed = measure("--device=cpu", "--budget=0")
    assert status == 1
    assert printed.count("not run: no time was left") == 6


def test_text_encoders_that_are_only_moved_have_the_size_of_real_ones() -> None:
    shells = text_encoder_shells("black-forest-labs/FLUX.2-klein-base-4B", torch.bfloat16)
    (encoder,) = shells.values()
    weights = list(encoder.parameters())
    assert all(weight.device.type == "cpu" and weight.dtype == torch.bfloat16 for weight in weights)
    assert sum(weight.numel() for weight in weights) == pytest.approx(4.02e9, rel=0.01)
