"""`ray`: the reward runs in actors of a Ray cluster, on other GPUs or machines.

Ray restarts an actor that died and asks it once more about the batch it was scoring. Everything between the
trainer and its own workers is Ray's matter; ray is imported when a reward asks for it, not before.
"""

from __future__ import annotations

import os
import signal
import threading
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from customized_grpo import extensions, keys
from customized_grpo.config.executors import RayExecution
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards.base import Kind, Reward, ScoringBatch, fingerprint_of, is_groupwise
from customized_grpo.rewards.executors.thread import ThreadExecutor


def ray_executor(config: RewardConfig, place: RayExecution) -> ThreadExecutor:
    """Start the actors of a reward and return their executor.

    Args:
        config: The reward, which each actor builds for itself.
        place: Number of actors and what each of them gets.

    Raises:
        UserError: Ray is not installed, no cluster can be reached, or the reward cannot be built.
    """
    reward = RayReward(config, place)
    return ThreadExecutor(reward, place.actors, reward.close)


class RayReward:
    """A reward in a pool of actors. Several threads may ask at once; each has an actor to itself.

    Args:
        config: The reward.
        place: Number of actors and what each of them gets.
    """

    name: str
    kind: Kind
    groupwise: bool

    def __init__(self, config: RewardConfig, place: RayExecution) -> None:
        check_permissions(place)
        ray = import_ray()
        self._owns_cluster = _connect(place.address)
        options = actor_options(place)
        worker = ray.remote(**options)(_Worker)
        device = "cuda" if place.gpus_per_actor else "cpu"
        # All are started before one is asked, so that they load side by side.
        self._actors = [worker.remote(config, device) for _ in range(place.actors)]
        self._free: SimpleQueue[Any] = SimpleQueue()
        for actor in self._actors:
            self._free.put(actor)
        try:
            # of all of them, although one would do: each must have been able to build its reward
            described = _get([actor.describe.remote() for actor in self._actors])
        except BaseException:
            self.close()
            raise
        self.name, self.kind, self.groupwise, self._fingerprint = described[0]

    def score(self, batch: ScoringBatch) -> Tensor:
        """Return what an actor returns, on its second try if it died in the first."""
        # Waits until an actor is free: one scores a batch at a time.
        actor = self._free.get()
        try:
            scores: Tensor = _get(actor.score.remote(_on_cpu(batch)))
        finally:
            self._free.put(actor)
        return scores

    def fingerprint(self) -> dict[str, Any]:
        """Return the fingerprint of the reward in the actors."""
        return self._fingerprint

    def close(self) -> None:
        """End the actors, and the cluster if it was started for this reward."""
        ray = import_ray()
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        if self._owns_cluster:
            self._owns_cluster = False
            ray.shutdown()


class _Worker:
    """The code of an actor. It builds the reward at the first request, so a failure becomes an answer."""

    def __init__(self, config: RewardConfig, device: str) -> None:
        self.config = config
        self.device = device
        self.reward: Reward | None = None

    def describe(self) -> tuple[str, Kind, bool, dict[str, Any]]:
        """Return name, kind, whether it needs whole groups, and fingerprint."""
        reward = self._built()
        return reward.name, reward.kind, is_groupwise(reward), fingerprint_of(reward)

    def score(self, batch: ScoringBatch) -> Tensor:
        """Score."""
        return self._built().score(batch)

    def _built(self) -> Reward:
        from customized_grpo.rewards.registry import build_reward

        if self.reward is None:
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # Ray sets it to the actor's cores
            self.reward = build_reward(self.config, self.device)
        return self.reward


def check_permissions(place: RayExecution) -> None:
    """Refuse what would run code or change programs at the word of a recipe alone.

    Raises:
        UserError: The user has not allowed the packages, a variable or the cluster that the recipe names.
    """
    mistakes = []
    if place.pip and not extensions.is_trusted("pip"):
        mistakes.append("executor.pip installs packages, which run code; if you know them: --trust pip")
    own_clusters = (None, "auto", "local", os.environ.get("RAY_ADDRESS"))
    if place.address not in own_clusters and not extensions.is_trusted("ray"):
        mistakes.append(  # what a cluster answers is unpickled here
            "executor.address is a cluster, which can run code here; if it is yours: --trust ray, or set "
            "RAY_ADDRESS"
        )
    for variable in place.env:
        if (problem := keys.why_not(variable)) is not None:
            mistakes.append(f"executor.env.{variable}: {problem}")
    if mistakes:
        raise UserError("\n".join(mistakes))


def import_ray() -> Any:
    """Import Ray.

    Raises:
        UserError: It is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "executor ray needs Ray, which is not installed",
            hint="Install it with: pip install 'customized-grpo[ray]'.",
        ) from error
    return ray


def actor_options(place: RayExecution) -> dict[str, Any]:
    """Return how Ray is to run an actor: its share of the hardware, its environment, and its restarts."""
    # Actors of a cluster do not inherit this process's environment. What the user allows comes last: a recipe
    # cannot widen it.
    allowed = {name: os.environ.get(name, "") for name in (keys.KEYS, extensions.TRUST)}
    environment: dict[str, Any] = {"env_vars": {**place.env, **allowed}}
    if place.pip:
        environment["pip"] = list(place.pip)
    return {
        "num_cpus": place.cpus_per_actor,
        "num_gpus": place.gpus_per_actor,
        # without bound, as a run of days may lose a machine more than once
        "max_restarts": -1,
        "max_task_retries": 1,
        "runtime_env": environment,
    }


def _connect(address: str | None) -> bool:
    """Join the cluster, or start one here; return whether this process must end it."""
    ray = import_ray()
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry, by us or by what we start
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, include_dashboard=None, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"executor ray: no cluster could be joined or started: {error}",
            hint="Start one with `ray start --head`, or leave executor.address null for a local one.",
        ) from error
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)  # Ray installs its own, which would exit without saving
    return True


def _get(reference: Any) -> Any:
    """Return the answers of actors; an error in an actor is raised here as it was there."""
    ray = import_ray()
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def _on_cpu(batch: ScoringBatch) -> ScoringBatch:
    return batch.map_images(Tensor.cpu)
