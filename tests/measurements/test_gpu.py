"""The GPU benchmark on small models on the CPU: same code, and memory as planned; times prove nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from processes import run_python
from random_models import text_encoder_shells

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "measurements" / "gpu.py"
# both families, nf4, classifier-free guidance; the compiler is tests/policies/test_compile.py's
CASES = ["flux1-24gb", "klein"]
TOLERANCE = 0.08
"""Largest relative error of a planned peak; .067 was seen, in nf4, whose code tables count here."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], str]:
    """The numbers of two cases, and what was printed."""
    out = tmp_path_factory.mktemp("gpu") / "results.json"
    done = run_python(SCRIPT, "--tiny", "--device=cpu", f"--out={out}", "--cases", *CASES)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text()), done.stdout


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
    done = run_python(SCRIPT, "--tiny", "--device=nowhere", f"--out={out}", "--cases", *CASES)
    assert done.returncode == 1
    results = json.loads(out.read_text())
    assert [result["case"] for result in results] == CASES
    assert all("nowhere" in result["error"] for result in results)
    assert all(f"{case}: " in done.stdout for case in CASES)


def test_cases_for_which_no_time_is_left_are_told(tmp_path: Path) -> None:
    done = run_python(SCRIPT, "--tiny", "--device=cpu", "--budget=0")
    assert done.returncode == 1
    assert done.stdout.count("not run: no time was left") == 6


def test_text_encoders_that_are_only_moved_have_the_size_of_real_ones() -> None:
    shells = text_encoder_shells("black-forest-labs/FLUX.2-klein-base-4B", torch.bfloat16)
    (encoder,) = shells.values()
    weights = list(encoder.parameters())
    assert all(weight.device.type == "cpu" and weight.dtype == torch.bfloat16 for weight in weights)
    assert sum(weight.numel() for weight in weights) == pytest.approx(4.02e9, rel=0.01)
