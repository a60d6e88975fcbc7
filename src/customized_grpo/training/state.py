"""What a checkpoint of a run holds, and how a run comes back from one.

State is the adapter, its average, the optimizer, the number of finished iterations, rollouts and seconds so
far, skipped updates and wasted iterations in a row, and what the alarms remember. Everything else is a
function of the recipe, for all random numbers come from (seed, iteration, prompt, sample).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from customized_grpo.config import Config, config_hash, diff_configs
from customized_grpo.engine.engine import Engine
from customized_grpo.errors import UserError
from customized_grpo.evaluation.alarms import MonitorRecord, TrainingHealth
from customized_grpo.policies.lora import load_average, name_average
from customized_grpo.policies.policy import Policy
from customized_grpo.rewards.executors import Scorer, check_fingerprints
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.runs.folder import versions
from customized_grpo.runs.optimizer import flatten_optimizer, restore_optimizer
from customized_grpo.training.updater import Updater

CHANGEABLE = {
    "run.dir",
    "run.overwrite",
    "run.process_timeout_s",
    "train.iterations",
    "train.max_unscored_share",
    "train.max_wasted_iterations",
}
UNCHANGEABLE = f"Only trackers and these may change: {', '.join(sorted(CHANGEABLE))}."
SEPARATOR = "/"  # between the name of a safetensors file and of a tensor in it


@dataclass
class Counters:
    """How far a run is.

    Attributes:
        iteration: Finished iterations.
        rollouts: Samples drawn for training, over all processes.
        seconds: Spent so far, over all sessions.
        wasted_in_a_row: Iterations without use up to this one; see `signal_watch`.
        history: What the alarms know of each evaluation but the base's.
        health: Gaps in the signal of the iterations since the last evaluation.
    """

    iteration: int = 0
    rollouts: int = 0
    seconds: float = 0.0
    wasted_in_a_row: int = 0
    history: list[MonitorRecord] = field(default_factory=list)
    health: list[dict[str, float]] = field(default_factory=list)


def remember(health: TrainingHealth) -> dict[str, Any]:
    """Return as JSON what the alarms must remember of an evaluation that its file does not say."""
    return {key: dict(values) for key, values in health._asdict().items()}


class RunCheckpoints:
    """Saves and restores a run.

    Args:
        store: The run's checkpoints.
        config: Its recipe.
        engine: The main process reads and writes, and tells the others.
        policy: Has the adapter.
        updater: Has the optimizer and the average.
        scorer: Its rewards must be the same after a resume.
    """

    def __init__(
        self,
        store: CheckpointStore,
        config: Config,
        engine: Engine,
        policy: Policy,
        updater: Updater,
        scorer: Scorer,
    ) -> None:
        self.store, self.config, self.engine = store, config, engine
        self.policy, self.updater, self.scorer = policy, updater, scorer

    @cached_property
    def fingerprints(self) -> list[dict[str, Any]]:
        """What identifies each reward; computed once, as all weights are read for it."""
        return self.scorer.fingerprints()

    def save(self, counters: Counters) -> None:
        """Write a checkpoint of the state after the last finished iteration, unless there is one.

        Raises:
            UserError: The disk refuses, a tensor is not finite, or the processes have drifted apart.
        """
        self.engine.check_agreement(self.updater.parameters)
        self.engine.from_main(lambda: self._write(counters))

    def _write(self, counters: Counters) -> None:
        if self.store.latest() == counters.iteration:
            return
        optimizer, optimizer_state = flatten_optimizer(self.updater.optimizer)
        tensors = {"adapter": self.policy.adapter_tensors(), "optimizer": optimizer}
        if self.updater.average is not None:
            tensors["average"] = name_average(self.updater.average)
        self.store.save(
            counters.iteration,
            tensors,
            {
                "iteration": counters.iteration,
                "rollouts": counters.rollouts,
                "seconds": counters.seconds,
                "wasted_in_a_row": counters.wasted_in_a_row,
                "skipped_in_a_row": self.updater.skipped_in_a_row,
                "health": counters.health,
                "history": [
                    {
                        "iteration": record.iteration,
                        **remember(
                            TrainingHealth(record.zero_std_share, record.nan_share, record.train_reward)
                        ),
                    }
                    for record in counters.history
                ],
                "optimizer": optimizer_state,
                "config": self.config.model_dump(mode="json"),
                "config_hash": config_hash(self.config),
                "rewards": self.fingerprints,
                "processes": self.engine.world_size,
                "versions": versions(),
            },
        )

    def restore(self, step: int | None = None) -> dict[str, Any]:
        """Put a checkpoint back into adapter, optimizer and average, and return its state.

        Args:
            step: Which one; None: the newest. Later ones are set aside once this one has proved sound.

        Raises:
            UserError: It is not there, is damaged, or belongs to another recipe or other rewards.
        """
        tensors: dict[str, Tensor] | None = None

        def read() -> Any:
            nonlocal tensors
            wanted = self.store.latest() if step is None else step
            assert wanted is not None
            checkpoint = self.store.load(wanted)
            self._check_same_run(checkpoint.state)
            self.store.rewind(wanted)
            tensors = {
                f"{entry}{SEPARATOR}{name}": tensor
                for entry, named in checkpoint.tensors.items()
                for name, tensor in named.items()
            }
            return checkpoint.state

        state: dict[str, Any] = self.engine.from_main(read)
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.engine.tensors_from_main(tensors).items():
            entry, _, name = key.partition(SEPARATOR)
            parts.setdefault(entry, {})[name] = tensor
        self.policy.load_adapter_tensors(parts["adapter"])
        restore_optimizer(self.updater.optimizer, parts.get("optimizer", {}), state["optimizer"])
        if self.updater.average is not None:
            load_average(self.updater.average, parts["average"])
        self.updater.skipped_in_a_row = state["skipped_in_a_row"]
        return state

    def _check_same_run(self, state: Any) -> None:
        """Refuse a checkpoint of another recipe or of other rewards, and say what differs."""
        saved = Config.model_validate_json(json.dumps(state["config"]))
        changed = [
            f"{path}: {old} in the checkpoint, {new} now"
            for path, old, new in diff_configs(saved, self.config)
            if path not in CHANGEABLE and not path.startswith("trackers")
        ]
        if changed:
            raise UserError("cannot resume exactly:\n  " + "\n  ".join(changed), UNCHANGEABLE)
        check_fingerprints(state["rewards"], self.fingerprints)
