"""Ray actors: what dies is restarted, and nothing of Ray is there unless a reward asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import serving
import tiny_rewards as tiny
from customized_grpo.config.executors import HttpExecution, RayExecution
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards import RewardError
from customized_grpo.rewards.executors import build_scorer, check_prerequisites
from customized_grpo.rewards.executors.ray import actor_options
from processes import PATIENCE_S, child_environment, run_python

pytestmark = pytest.mark.slow


def in_ray(name: str, environment: dict[str, str], actors: int = 1, **options: Any) -> RewardConfig:
    place = RayExecution(kind="ray", env=environment, actors=actors)
    return RewardConfig(name=f"own_rewards:{name}", options=options, executor=place)


@pytest.mark.parametrize("deaths", [1, 2])
def test_an_actor_that_dies_is_restarted_and_asked_once_more(
    deaths: int, tmp_path: Path, ray_cluster: Any, worker_env: dict[str, str]
) -> None:
    for life in range(deaths):
        (tmp_path / str(life)).touch()
    batch = tiny.make_batch(3)
    with build_scorer([RewardConfig(name="own_rewards:brightness")]) as inline:
        expected = inline.score(batch)
    with build_scorer([in_ray("Dies", worker_env, lives=str(tmp_path))]) as scorer:
        if deaths == 1:
            assert torch.equal(scorer.score(batch), expected)
        else:
            with pytest.raises(RewardError, match=r"reward 'own' failed on samples sample 0"):
                scorer.score(batch)
        assert not list(tmp_path.iterdir())
        assert torch.equal(scorer.score(batch), expected)  # alive again


def test_each_reward_has_its_environment_and_closing_ends_its_actors(
    ray_cluster: Any, worker_env: dict[str, str]
) -> None:
    configs = []
    for number in ("3", "4"):
        config = in_ray("Environment", {**worker_env, "OWN_NUMBER": number})
        configs.append(config.model_copy(update={"label": f"number {number}"}))
    with build_scorer(configs) as scorer:
        assert scorer.score(tiny.make_batch(2)).tolist() == [[3, 4], [3, 4]]
    # a cluster that was there before is not ours to end, and all its cores are free again
    serving.wait_until(lambda: ray_cluster.available_resources().get("CPU") == 6)


def test_what_an_actor_gets_is_what_the_recipe_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CGRPO_TRUST", "mine")
    monkeypatch.setenv("CGRPO_KEYS", "MINE")
    place = RayExecution(
        kind="ray", gpus_per_actor=0.25, cpus_per_actor=3, pip=("hpsv3==1.0",), env={"A": "b"}
    )
    options = actor_options(place)
    assert (options["num_gpus"], options["num_cpus"]) == (0.25, 3)
    variables = {"A": "b", "CGRPO_TRUST": "mine", "CGRPO_KEYS": "MINE"}
    assert options["runtime_env"] == {"env_vars": variables, "pip": ["hpsv3==1.0"]}


def test_a_reward_that_an_actor_cannot_build_is_the_same_message_as_here(
    ray_cluster: Any, worker_env: dict[str, str]
) -> None:
    with pytest.raises(UserError, match="has no 'Nothing'"):
        build_scorer([in_ray("Nothing", worker_env)])


def test_ray_is_imported_only_for_a_reward_that_runs_there() -> None:
    code = """
import sys
from customized_grpo.config.schema import RewardConfig
from customized_grpo.rewards.executors import build_scorer
build_scorer([RewardConfig(name="dino", path="toybox")]).close()
assert not {"ray", "fastapi", "uvicorn"} & set(sys.modules)
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


def test_every_missing_package_and_token_is_named_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delenv("CGRPO_NO_TOKEN", raising=False)
    configs = [
        RewardConfig(name="no_such:Reward", executor=RayExecution(kind="ray")),
        RewardConfig(
            name="no_such:Other",
            executor=HttpExecution(kind="http", url="http://x", token_env="CGRPO_NO_TOKEN"),
        ),
    ]
    with pytest.raises(UserError) as caught:
        check_prerequisites(configs)
    assert "pip install 'customized-grpo[ray]'" in str(caught.value)
    assert "environment variable CGRPO_NO_TOKEN is not set" in str(caught.value)


OWNER = """
import os, signal, sys, torch
from customized_grpo.config.executors import RayExecution
from customized_grpo.config.schema import RewardConfig
from customized_grpo.engine.interrupts import Interrupted, StopFlag
from customized_grpo.rewards import ScoringBatch
from customized_grpo.rewards.executors import build_scorer
os.environ["CGRPO_KEYS"] = "PYTHONPATH"
place = RayExecution(kind="ray", env={"PYTHONPATH": os.environ["PYTHONPATH"]})
config = RewardConfig(name="own_rewards:Slow", options={"seconds": 600}, executor=place)
before = signal.getsignal(signal.SIGTERM)
with StopFlag() as stop, build_scorer([config]) as scorer:
    assert signal.getsignal(signal.SIGTERM) == stop._handle, "Ray has taken the signal"
    scorer.submit(ScoringBatch(torch.rand(1, 3, 8, 8), ["x"], [[]], None, None, [{}]))
    os.kill(os.getpid(), signal.SIGTERM)
    try:
        scorer.collect(stop.check)
    except Interrupted as stopped:
        status = stopped.status
import ray
assert not ray.is_initialized()
sys.exit(status)
"""


def test_a_cluster_of_our_own_ends_with_a_signal_in_the_middle_of_scoring(
    tmp_path: Path, worker_env: dict[str, str]
) -> None:
    pytest.importorskip("ray")
    own = {
        "RAY_TMPDIR": "/tmp",
        "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",
        "RAY_enable_metrics_collection": "0",
    }
    child = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        env=child_environment(**own),
        start_new_session=True,
    )
    assert child.wait(timeout=PATIENCE_S) == 143
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)  # nobody of its group is left
