"""The state of a run: the content of a checkpoint, and how a run is restored from one.

State is the adapter, its average, the optimizer, the number of finished iterations, rollouts and seconds so
far, skipped updates and wasted iterations in a row, and the inputs of the alarms that no other file holds.
Everything else is a function of the recipe, because all random numbers come from (seed, iteration, prompt,
sample).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from customized_grpo.config import Config, config_hash, diff_configs
from customized_grpo.errors import UserError
from customized_grpo.evaluation.alarms import MonitorRecord
from customized_grpo.extensions import code_fingerprints
from customized_grpo.policies.lora import load_average, name_average
from customized_grpo.rewards.executors import check_fingerprints
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.runs.folder import versions
from customized_grpo.runs.optimizer import flatten_optimizer, restore_optimizer
from customized_grpo.training.parts import Parts
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
class RunState:
    """How far a run is, except for its tensors.

    Attributes:
        iteration: Number of finished iterations.
        rollouts: Samples drawn for training, over all processes.
        seconds: Seconds spent when the run was last saved, over all sessions.
        wasted_in_a_row: Number of wasted iterations up to this one; see `waste`.
        processes: Number of processes that last saved the run.
        history: The monitors at each evaluation except the base's.
        health: `signal_health` of each iteration since the last evaluation.
    """

    iteration: int = 0
    rollouts: int = 0
    seconds: float = 0.0
    wasted_in_a_row: int = 0
    processes: int = 1
    history: list[MonitorRecord] = field(default_factory=list)
    health: list[dict[str, float]] = field(default_factory=list)


class RunCheckpoints:
    """Saves and restores a run.

    Args:
        store: The run's checkpoints.
        parts: The parts of the run; its main process reads and writes, and sends the state to the others.
        updater: Holds the optimizer and the average.
        state: The counters, which `restore` fills in place.
    """

    def __init__(self, store: CheckpointStore, parts: Parts, updater: Updater, state: RunState) -> None:
        self.store = store
        self.config = parts.config
        self.engine = parts.engine
        self.policy = parts.policy
        self.scorer = parts.scorer
        self.updater = updater
        self.state = state

    @cached_property
    def fingerprints(self) -> list[dict[str, Any]]:
        """Fingerprint of each reward; computed once, because all weights are read for it."""
        return self.scorer.fingerprints()

    def save(self) -> None:
        """Write a checkpoint of the state after the last finished iteration, unless there is one.

        Raises:
            UserError: The disk refuses, a tensor is not finite, or the processes have drifted apart.
        """
        self.engine.check_agreement(self.updater.parameters)
        self.engine.from_main(self._write)

    def _write(self) -> None:
        state = self.state
        if self.store.latest() == state.iteration:
            return
        optimizer, optimizer_state = flatten_optimizer(self.updater.optimizer)
        tensors = {"adapter": self.policy.adapter_tensors(), "optimizer": optimizer}
        if self.updater.average is not None:
            tensors["average"] = name_average(self.updater.average)
        history = [{"iteration": record.iteration, **record.health.to_json()} for record in state.history]
        self.store.save(
            state.iteration,
            tensors,
            {
                "iteration": state.iteration,
                "rollouts": state.rollouts,
                "seconds": state.seconds,
                "wasted_in_a_row": state.wasted_in_a_row,
                "skipped_in_a_row": self.updater.skipped_in_a_row,
                "health": state.health,
                "history": history,
                "optimizer": optimizer_state,
                "config": self.config.model_dump(mode="json"),
                "config_hash": config_hash(self.config),
                "rewards": self.fingerprints,
                "code": code_fingerprints(self.config.part_names),
                "processes": self.engine.world_size,
                "versions": versions(),
            },
        )

    def restore(self, step: int | None = None) -> list[dict[str, Any]]:
        """Restore adapter, optimizer, average and counters from a checkpoint.

        Args:
            step: Iteration after which it was saved; None: the newest. Later ones are set aside once this one
                has proved sound.

        Returns:
            The history: of each evaluation but the base's its iteration and the health of training before it.

        Raises:
            UserError: It is not there, is damaged, or belongs to another recipe, other rewards or other code.
        """
        tensors: dict[str, Tensor] | None = None  # stays None in all processes but the main one

        def read() -> Any:
            nonlocal tensors
            latest = self.store.latest() if step is None else step
            assert latest is not None
            checkpoint = self.store.load(latest)
            self._check_same_run(checkpoint.state)
            self.store.rewind(latest)
            tensors = {}
            for entry, group in checkpoint.tensors.items():
                tensors |= {f"{entry}{SEPARATOR}{name}": tensor for name, tensor in group.items()}
            return checkpoint.state

        saved: dict[str, Any] = self.engine.from_main(read)
        entries: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.engine.tensors_from_main(tensors).items():
            entry, _, name = key.partition(SEPARATOR)
            entries.setdefault(entry, {})[name] = tensor
        self.policy.load_adapter_tensors(entries["adapter"])
        # an optimizer that has not taken a step has no tensors
        restore_optimizer(self.updater.optimizer, entries.get("optimizer", {}), saved["optimizer"])
        if self.updater.average is not None:
            load_average(self.updater.average, entries["average"])
        self.updater.skipped_in_a_row = saved["skipped_in_a_row"]
        self.state.iteration = saved["iteration"]
        self.state.rollouts = saved["rollouts"]
        self.state.seconds = saved["seconds"]
        self.state.wasted_in_a_row = saved["wasted_in_a_row"]
        self.state.processes = saved["processes"]
        self.state.health = saved["health"]
        history: list[dict[str, Any]] = saved["history"]
        return history

    def _check_same_run(self, saved: Any) -> None:
        """Refuse a checkpoint of another recipe, of other rewards or of other code of the user's.

        Raises:
            UserError: Lists what differs.
        """
        saved_config = Config.model_validate_json(json.dumps(saved["config"]))
        changed = [
            f"{path}: {old} in the checkpoint, {new} now"
            for path, old, new in diff_configs(saved_config, self.config)
            if path not in CHANGEABLE and not path.startswith("trackers")
        ]
        if changed:
            raise UserError("cannot resume exactly:\n  " + "\n  ".join(changed), hint=UNCHANGEABLE)
        check_fingerprints(saved["rewards"], self.fingerprints)
        code = code_fingerprints(self.config.part_names)
        if saved["code"] != code:
            modules = [module for module in code if saved["code"].get(module) != code[module]]
            raise UserError(
                f"cannot resume exactly: the code of {', '.join(modules)} has changed since the checkpoint",
                hint="Restore the file, or start a new run with the new code.",
            )
