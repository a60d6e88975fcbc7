"""A process that is told to stop, dies or hangs, in every phase: what the others do, and what resume makes.

tests/training/test_trainer.py has the signals in rollout, reward and update of a single process.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import forked
from forked import free_port, launcher_variables
from processes import PATIENCE_S, child_environment
from same_run import assert_same_run, events, lines

pytestmark = pytest.mark.slow

PHASES = ["rollout", "reward", "update", "evaluation", "save"]
# The process that has the fault: the main one is the only one that saves; elsewhere either may have it.
RANK = {"rollout": 1, "reward": 0, "update": 1, "evaluation": 1, "save": 0}
# Saved after the signal: an unfinished iteration is dropped, an update that has begun is finished.
SAVED = {"rollout": 1, "reward": 1, "update": 2, "evaluation": 2, "save": 2}
TIMEOUT_S = 10  # more than any exchange takes on a busy machine
# Two groups of two small samples an iteration: for two processes, and quick.
SMALL = ["train.group_size=2", "rollout.steps=3", "rollout.batch_size=2", "train.micro_batch_size=2"]


def scenario(name: str, processes: int, *overrides: str, **fault: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "processes": processes, "overrides": [*SMALL, *overrides]}
    return {**found, "fault": fault} if fault else found


def stop(phase: str, processes: int) -> dict[str, Any]:
    every = "checkpoint.every=1" if phase == "save" else "checkpoint.every=9"  # else only the signal saves
    fault = {"rank": min(RANK[phase], processes - 1), "phase": phase, "signal": "SIGTERM"}
    return scenario(f"stop_{phase}_{processes}", processes, every, **fault)


def death(phase: str) -> dict[str, Any]:
    return scenario(f"death_{phase}", 2, rank=RANK[phase], phase=phase, signal="SIGKILL")


SCENARIOS = [
    *(scenario(f"whole_{processes}", processes) for processes in (1, 2)),
    *(stop(phase, 1) for phase in ("evaluation", "save")),
    *(stop(phase, 2) for phase in PHASES),
    *(death(phase) for phase in PHASES),
    scenario("hang", 2, f"run.process_timeout_s={TIMEOUT_S}.0", rank=1, phase="update", signal="SIGSTOP"),
    scenario("loss", 2, rank=1, phase="loss"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "plan.json").write_text(json.dumps(SCENARIOS))
    forked.script("faulty_runs.py", folder / "plan.json", folder)
    return folder


@pytest.fixture(scope="module")
def results(runs: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs / "results.json").read_text())
    assert found["whole_1"]["first"]["statuses"] == [0]
    assert found["whole_2"]["first"]["statuses"] == [0, 0]
    return found


def assert_resumed(results: dict[str, Any], runs: Path, name: str, processes: int) -> None:
    resumed = results[name]["resumed"]
    assert resumed["statuses"] == [0] * processes, resumed["printed"]
    assert_same_run(runs / name, runs / f"whole_{processes}")


@pytest.mark.parametrize(
    ("phase", "processes"), [("evaluation", 1), ("save", 1), *((phase, 2) for phase in PHASES)]
)
def test_told_to_stop_in_any_phase_all_processes_save_and_leave_with_143(
    results: dict[str, Any], runs: Path, phase: str, processes: int
) -> None:
    """Only one of the processes is told."""
    name = f"stop_{phase}_{processes}"
    found = results[name]
    assert found["first"]["statuses"] == [143] * processes, found["first"]["printed"]
    assert f"interrupted; continue with: cgrpo resume {runs / name}" in found["first"]["printed"][0]
    assert found["steps"][-1] == SAVED[phase]
    assert_resumed(results, runs, name, processes)


@pytest.mark.parametrize("phase", PHASES)
def test_when_one_process_dies_the_other_says_so_and_leaves(
    results: dict[str, Any], runs: Path, phase: str
) -> None:
    name = f"death_{phase}"
    first = results[name]["first"]
    dead, other = RANK[phase], 1 - RANK[phase]
    assert first["statuses"][dead] == -signal.SIGKILL
    assert first["statuses"][other] == 2, first["printed"]  # -9 here: it hung and the script ended it
    assert f"error: process {other} lost contact with the others" in first["printed"][other]
    assert "cgrpo resume" in first["printed"][other]
    assert "Traceback" not in first["printed"][other]
    assert_resumed(results, runs, name, 2)


def test_a_process_that_hangs_is_waited_for_no_longer_than_the_timeout(
    results: dict[str, Any], runs: Path
) -> None:
    first = results["hang"]["first"]
    assert first["statuses"] == [2, -signal.SIGKILL], first["printed"]  # it is killed when the other is gone
    assert "process 0 lost contact with the others" in first["printed"][0]
    assert results["hang"]["resumed"]["statuses"] == [0, 0]


def test_a_loss_that_is_infinite_in_one_process_leaves_the_step_out_in_both(
    results: dict[str, Any], runs: Path
) -> None:
    """Had one of them taken it, the save that follows would have found two adapters."""
    assert results["loss"]["first"]["statuses"] == [0, 0], results["loss"]["first"]["printed"]
    trained = [line for line in lines(runs / "loss") if line["kind"] == "train"]
    assert [line["health/skipped_updates"] for line in trained] == [0, 1]
    (event,) = events(runs / "loss", "skipped")
    assert event["iteration"] == 2
    assert str(event["message"]).count(", ") == 1, "the prompts of both processes"


DIE = """
import os, signal, sys
from customized_grpo.cli.main import main
from customized_grpo.engine.engine import Engine
if os.environ["RANK"] == "1":
    Engine.sum_gradients = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(main(sys.argv[1:]))
"""


def test_a_fresh_interpreter_leaves_a_dead_peer_without_hanging_at_its_exit(tmp_path: Path) -> None:
    """Started by hand and left by its normal way out, on which a thread of a library could wait for ever."""
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", DIE, "train", "toybox-smoke", f"run.dir={tmp_path / 'run'}", *SMALL],
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(**launcher_variables(rank, 2, port)),
        )
        for rank in (0, 1)
    ]
    try:
        printed = [process.communicate(timeout=PATIENCE_S)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [2, -signal.SIGKILL], printed
    assert "process 0 lost contact with the others" in printed[0]
