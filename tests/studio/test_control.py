"""Starting, stopping and resuming real runs from the studio, and who may not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from customized_grpo.reporting.metrics import read_metrics
from processes import PATIENCE_S
from studio_serving import Running, process, running

pytestmark = pytest.mark.slow

SETTINGS = ["evaluation.samples_per_prompt=1", "evaluation.every=0", "checkpoint.every=1"]


def wait_for(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def run_in_state(studio: Running, name: str, state: str) -> dict[str, Any] | None:
    for run in studio.json("/api/list")["runs"]:
        if run["name"] == name and run["state"] == state:
            return run
    return None


def test_without_control_nothing_can_be_started_or_stopped(runs: Path) -> None:
    with running(runs) as studio:
        assert studio.json("/api/control")["is_on"] is False
        half = studio.run("half")["id"]
        for verb, body in (
            ("start", {"recipe": "two-scale", "name": "new"}),
            ("stop", {"run": half}),
            ("resume", {"run": half}),
        ):
            answer = studio.post(f"/api/control/{verb}", body)
            assert answer.status_code == 403 and "--control" in answer.json()["detail"]
    assert not (runs / "new").exists()


@pytest.mark.slow
def test_a_run_is_started_stopped_and_resumed_to_its_end(tmp_path: Path) -> None:
    iterations = 4000  # minutes, so that it is stopped in the middle
    with running(tmp_path, control=True) as studio:
        settings = [*SETTINGS, f"train.iterations={iterations}"]
        body = {"recipe": "two-scale", "name": "new", "settings": settings}
        assert studio.post("/api/control/start", body).status_code == 200
        wait_for(lambda: (run_in_state(studio, "new", "running") or {}).get("iteration", 0) >= 2)
        run = studio.run("new")["id"]
        again = studio.post("/api/control/start", body).json()["jobs"][0]["number"]
        assert studio.post("/api/control/stop", {"run": run}).status_code == 200
        stopped = wait_for(lambda: run_in_state(studio, "new", "stopped"))
        assert 2 <= stopped["iteration"] < iterations
        jobs = wait_for(lambda: ended_jobs(studio))
        statuses = {job["number"]: (job["status"], job["words"]) for job in jobs}
        assert statuses[1] == (143, "")
        assert statuses[again][0] == 2 and "already holds a run" in statuses[again][1]
        total = stopped["iteration"] + 2
        resume = {"run": run, "settings": [f"train.iterations={total}"]}
        assert studio.post("/api/control/resume", resume).status_code == 200
        ended = wait_for(lambda: run_in_state(studio, "new", "ended"))
        assert ended["iteration"] == total
        wait_for(lambda: ended_jobs(studio))
    records = read_metrics(tmp_path / "new" / "metrics.jsonl")
    trained = [record["iteration"] for record in records if record["kind"] == "train"]
    assert trained == list(range(1, total + 1))


def ended_jobs(studio: Running) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = studio.json("/api/control")["jobs"]
    return [] if any(job["status"] is None for job in jobs) else jobs


def test_what_train_refuses_is_said(runs: Path) -> None:
    with running(runs, control=True) as studio:
        body = {"recipe": "two-scale", "name": "new", "settings": ["trian.x=1"]}
        assert studio.post("/api/control/start", body).status_code == 200
        (job,) = wait_for(lambda: ended_jobs(studio))
    assert job["status"] == 2 and "trian" in job["words"] and job["run"] is None


def test_a_run_whose_resume_fails_is_failed_with_the_reason(runs: Path) -> None:
    state = next((runs / "half" / "checkpoints").glob("step_000003/state.json"))
    state.write_text(state.read_text() + " ")
    with running(runs, control=True) as studio:
        half = studio.run("half")["id"]
        assert studio.post("/api/control/resume", {"run": half}).status_code == 200
        wait_for(lambda: ended_jobs(studio))
        failed = wait_for(lambda: run_in_state(studio, "half", "failed"))
    assert "state.json" in failed["problem"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"name": "../out"}, "is no name for a run"),
        ({"name": ""}, "is no name for a run"),
        ({"name": "-x"}, "is no name for a run"),
        ({"recipe": ""}, "no recipe"),
        ({"settings": ["--trust=os"]}, "is no setting"),
        ({"settings": ["run.dir=/tmp/elsewhere"]}, "decided by the studio"),
        ({"settings": ["run.overwrite=true"]}, "decided by the studio"),
        ({"settings": "train.iterations=1"}, "not as expected: body.settings"),
    ],
)
def test_a_start_that_would_leave_the_folder_or_the_recipe_is_refused(
    runs: Path, body: dict[str, Any], message: str
) -> None:
    with running(runs, control=True) as studio:
        answer = studio.post("/api/control/start", {"recipe": "two-scale", "name": "new", **body})
        assert answer.status_code == 422 and message in answer.json()["detail"]
        assert studio.json("/api/control")["jobs"] == []


def test_a_recipe_that_looks_like_an_option_is_none(runs: Path) -> None:
    with running(runs, control=True) as studio:
        studio.post("/api/control/start", {"recipe": "--help", "name": "new"})
        (job,) = wait_for(lambda: ended_jobs(studio))
    assert job["status"] == 2 and "--help" in job["words"] and "Usage" not in job["words"]


def test_a_run_that_does_not_train_here_is_not_stopped(runs: Path) -> None:
    lock = runs / "half" / "lock"
    owner = json.loads(lock.read_text())
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with running(runs, control=True) as studio:
            half = studio.run("half")["id"]
            # its number, but it was born after the lock was taken; and its number on another host
            for changes in ({"started": "2001-01-01T00:00:00+00:00"}, {"host": "gpu7"}):
                lock.write_text(json.dumps({**owner, "pid": bystander.pid, **changes}))
                answer = studio.post("/api/control/stop", {"run": half})
                assert answer.status_code == 422 and "does not train" in answer.json()["detail"]
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_studio_of_one_run_has_no_place_for_new_ones(runs: Path) -> None:
    with running(runs / "done", control=True) as studio:
        answer = studio.post("/api/control/start", {"recipe": "two-scale", "name": "new"})
    assert answer.status_code == 422 and "no folder for new runs" in answer.json()["detail"]


def test_control_always_has_a_token_and_prints_it_where_no_server_sees_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CGRPO_TOKEN", raising=False)
    with process(str(runs), "--control") as (_, url):
        address, _, token = url.partition("/#token=")
        assert re.fullmatch(r"[\w-]{32}", token)
        assert httpx.get(f"{address}/api/control").status_code == 401
        known = httpx.get(f"{address}/api/control", headers={"Authorization": f"Bearer {token}"})
        assert known.json()["is_on"] is True
