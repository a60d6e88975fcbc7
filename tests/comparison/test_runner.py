"""`cgrpo compare` as users run it: real training of the smallest recipe, interrupted, killed, repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import forked_comparison
from commands import run_here
from customized_grpo.comparison.arms import Arm
from customized_grpo.comparison.plan import Plan, make_plan
from customized_grpo.comparison.runner import Runner, slots
from customized_grpo.engine.interrupts import StopFlag
from customized_grpo.errors import UserError
from customized_grpo.runs.lock import RunLock
from processes import CGRPO, PATIENCE_S

pytestmark = pytest.mark.slow

ARMS = """
arms:
  - {name: naive, label: Naive, role: front, overrides: {advantage.name: linear, schedule.name: constant}}
  - {name: both, label: Both, role: method, control: naive, overrides: {advantage.gamma: 0.4}}
"""
RECIPE = ("toybox-smoke", "train.iterations=3", "checkpoint.every=1")
NO_DOCTOR = "--no-doctor"
"""`finished` alone needs the doctor's measurements."""


def arguments(folder: Path, *options: str, arms: str = ARMS) -> list[str]:
    (folder / "arms.yaml").write_text(arms)
    files = ["--arms", str(folder / "arms.yaml"), "--seeds", "1", "--out", str(folder / "out")]
    return ["compare", *RECIPE, *files, *options]


def compare(folder: Path, *options: str) -> tuple[int, str]:
    """Compare in forks, to the end; return the exit status and what was printed."""
    process, printed = forked_comparison.start(folder, *arguments(folder, *options))
    return finish(process, printed)


def finish(process: BaseProcess, printed: Path) -> tuple[int, str]:
    process.join(PATIENCE_S)
    hangs = process.is_alive()
    process.kill()
    assert not hangs, f"it hangs:\n{printed.read_text()}"
    assert process.exitcode is not None
    return process.exitcode, printed.read_text()


def start(folder: Path, *options: str) -> tuple[BaseProcess, Path]:
    """Start a comparison in forks that can be sent signals."""
    return forked_comparison.start(folder, *arguments(folder, NO_DOCTOR, *options))


def row(folder: Path, arm: str) -> dict[str, Any]:
    """Return the row of an arm without its time, which is all that may differ."""
    results = json.loads((folder / "out" / "results.json").read_text())
    (found,) = [run for run in results["runs"] if run["arm"] == arm]
    return {key: value for key, value in found.items() if key != "wall_s"}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that nothing disturbed, two runs side by side."""
    folder = tmp_path_factory.mktemp("undisturbed")
    status, printed = compare(folder, "--jobs", "2")
    assert status == 0, printed
    assert "first-pass ratio" in printed
    return folder


def test_it_leaves_results_a_page_and_ordinary_run_folders(finished: Path) -> None:
    results = json.loads((finished / "out" / "results.json").read_text())
    assert {run["state"] for run in results["runs"]} == {"finished"}
    assert [entry["runs"] for entry in results["analysis"]["arms"]] == [1, 1]
    assert results["decisions"]["curves"]
    assert "<html" in (finished / "out" / "comparison.html").read_text()
    assert (finished / "out" / "runs" / "both" / "seed_0" / "report.html").is_file()


def test_all_arms_start_from_one_base_and_the_same_prompts(finished: Path) -> None:
    naive, both = row(finished, "naive"), row(finished, "both")
    assert naive["before"] == both["before"] and naive["evals"][0] == both["evals"][0]
    first = [arm["train"][0]["advantage/rho"] for arm in (naive, both)]
    assert first[0] == first[1]  # same prompts, same noise, same policy: the first iteration's samples
    assert naive["after"] != both["after"]


def test_calling_it_again_trains_nothing(finished: Path) -> None:
    before = (finished / "out" / "results.json").read_text()
    done = run_here(*arguments(finished, NO_DOCTOR))
    assert done.returncode == 0 and "2 runs, 2 finished" in done.stdout
    assert (finished / "out" / "results.json").read_text() == before


def test_sigterm_saves_the_runs_and_the_next_call_goes_on(finished: Path, tmp_path: Path) -> None:
    process, printed = start(tmp_path, "--jobs", "2")
    checkpoints = tmp_path / "out" / "runs" / "naive" / "seed_0" / "checkpoints"
    wait_for(lambda: any(checkpoints.glob("*")))
    process.terminate()
    status, text = finish(process, printed)
    assert status == 143 and "call the same command to go on" in text
    assert not (tmp_path / "out" / "runs" / "naive" / "seed_0" / "summary.json").exists()
    status, text = compare(tmp_path, NO_DOCTOR)
    assert status == 0, text
    assert [row(tmp_path, arm) for arm in ("naive", "both")] == [
        row(finished, arm) for arm in ("naive", "both")
    ]


def test_a_killed_comparison_leaves_its_run_to_finish_and_the_next_one_waits_for_it(
    finished: Path, tmp_path: Path
) -> None:
    process, _ = start(tmp_path, "--jobs", "1")
    metrics = tmp_path / "out" / "runs" / "naive" / "seed_0" / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.stat().st_size > 0)
    process.kill()
    process.join(PATIENCE_S)
    with (
        pytest.raises(UserError, match="another process"),
        RunLock(tmp_path / "out" / "claims" / "naive_seed_0"),
    ):
        pass  # the training process, which goes on, has inherited the claim
    status, text = compare(tmp_path, NO_DOCTOR, "--jobs", "1")
    assert status == 0, text
    assert "naive_seed_0 finished" not in text and "both_seed_0 finished" in text
    assert [row(tmp_path, arm) for arm in ("naive", "both")] == [
        row(finished, arm) for arm in ("naive", "both")
    ]


def test_one_arm_whose_run_is_killed_goes_on_from_its_checkpoint_to_the_same_row(
    finished: Path, tmp_path: Path
) -> None:
    # Fresh interpreters here, those that a user gets; their rows are those of forks.
    command = [sys.executable, *CGRPO, *arguments(tmp_path, NO_DOCTOR, "--only", "naive")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    run = tmp_path / "out" / "runs" / "naive" / "seed_0"
    wait_for(lambda: (run / "lock").is_file() and any((run / "checkpoints").glob("*")))
    os.kill(json.loads((run / "lock").read_text())["pid"], signal.SIGKILL)
    printed, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2 and "naive_seed_0 failed" in printed
    status, text = compare(tmp_path, NO_DOCTOR, "--only", "naive")
    assert status == 0, text
    assert row(tmp_path, "naive") == row(finished, "naive")


def test_a_failing_arm_is_named_and_the_others_finish(tmp_path: Path) -> None:
    failing = ARMS.replace(
        "overrides: {advantage.gamma: 0.4}", "overrides: {model.lora.target: no_such_layer}"
    )
    command = arguments(tmp_path, NO_DOCTOR, "train.iterations=1", "--jobs", "1", arms=failing)
    status, text = finish(*forked_comparison.start(tmp_path, *command))
    assert status == 2
    assert "both_seed_0 failed" in text and "naive_seed_0 finished" in text


# Without training


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    arm = Arm(name="one", label="One", role="front", overrides={"advantage.name": "linear"})
    return make_plan("toybox-smoke", (), [arm], [0], folder=tmp_path / "out", threads=1)


def test_a_run_that_another_comparison_claimed_is_left_to_it(plan: Plan) -> None:
    said: list[str] = []
    (run,) = plan.runs()
    claim = plan.folder / "claims" / run.name
    claim.mkdir(parents=True)
    with RunLock(claim):
        other = threading.Timer(1.0, lambda: run.folder.write_json("summary.json", {"finished": True}))
        other.start()
        runner = Runner(plan, slots(1, 1, 0), said.append, lambda: None)
        waiting = threading.Thread(target=runner.run, args=(StopFlag(),))
        waiting.start()
        other.join()
        assert waiting.is_alive()
    waiting.join(timeout=PATIENCE_S)
    assert not waiting.is_alive() and not runner.failed
    assert any("another comparison" in line for line in said)
    assert not (plan.folder / "logs").exists()


def test_slots_share_the_gpus_in_turn_or_bound_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots(3, 1, 2)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in slots(2, 1, 2)] == ["5", "7"]
    (slot,) = slots(1, 3, 0)
    assert slot["OMP_NUM_THREADS"] == "3" and "CUDA_VISIBLE_DEVICES" not in slot
