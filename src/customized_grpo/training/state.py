"""The state of a run: the content of a checkpoint, and how a run is restored from one.

State is the adapter, its average, the old policy of NFT and AWM, the optimizer, the number of finished
iterations, rollouts, further prompts and seconds so far, skipped updates and wasted iterations in a row, and
the inputs of the alarms that no other file holds. Everything else is a function of the recipe, because all
random numbers come from (seed, iteration, prompt, sample).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from customized_grpo.config import Config, config_hash
from customized_grpo.engine.agreement import check_processes
from customized_grpo.errors import UserError
from customized_grpo.evaluation.alarms import MonitorRecord
from customized_grpo.extensions import code_fingerprints
from customized_grpo.policies.lora import load_average, name_average
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.runs.folder import versions
from customized_grpo.runs.optimizer import flatten_optimizer, restore_optimizer
from customized_grpo.runs.reading import settled
from customized_grpo.training.algorithm import Algorithm
from customized_grpo.training.identity import (
    FREE,
    SCORES_DEPEND_ON,
    Difference,
    code_values,
    contents,
    differing,
    differing_settings,
    reward_values,
)
from customized_grpo.training.parts import Parts
from customized_grpo.training.updater import Updater

UNCHECKED = (
    "the checkpoint is of a version that kept no fingerprints: whether base, rows and images are those that "
    "it was trained with could not be checked"
)
NEEDED = (
    "iteration",
    "rollouts",
    "seconds",
    "wasted_in_a_row",
    "skipped_in_a_row",
    "health",
    "history",
    "optimizer",
    "config",
    "rewards",
    "code",
    "processes",
    "versions",
)
"""Keys of a checkpoint's state without which a run cannot be restored."""

SEPARATOR = "/"  # between the name of a safetensors file and of a tensor in it


@dataclass
class RunState:
    """How far a run is, except for its tensors.

    Attributes:
        iteration: Number of finished iterations.
        rollouts: Samples drawn for training, over all processes.
        further_prompts: Prompts that dynamic sampling has drawn besides those of the iterations.
        seconds: Seconds spent when the run was last saved, over all sessions.
        wasted_in_a_row: Number of wasted iterations up to this one; see `waste`.
        processes: Number of processes that last saved the run.
        history: The monitors at each evaluation except the base's.
        health: `signal_health` of each iteration since the last evaluation.
        changes: What was changed on purpose when the run was resumed: iteration, key, old and new value.
    """

    iteration: int = 0
    rollouts: int = 0
    further_prompts: int = 0
    seconds: float = 0.0
    wasted_in_a_row: int = 0
    processes: int = 1
    history: list[MonitorRecord] = field(default_factory=list)
    health: list[dict[str, float]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Restored:
    """What is to be known of a restored checkpoint besides the state that it filled in.

    Attributes:
        history: Of each evaluation but the base's its iteration and the health of training before it.
        changes: Differences to the checkpoint that the user allows.
        unchecked: What the checkpoint, of an older version, cannot be compared with.
        processes: Number of processes that saved it.
        versions: Versions, of this package and of libraries, that are others now.
    """

    history: list[dict[str, Any]]
    changes: list[Difference]
    unchecked: str | None
    processes: int
    versions: list[Difference] = field(default_factory=list)

    @property
    def is_comparable(self) -> bool:
        """Return whether evaluations from now on can be compared with the earlier ones."""
        return not any(change.is_about(SCORES_DEPEND_ON) for change in self.changes)

    def notes(self, processes: int) -> list[tuple[str, str]]:
        """Return what is not as it was when the run was saved: name of an event, and a sentence.

        Args:
            processes: Number of processes now.
        """
        notes = [("changed", f"{change}, as --allow-change says") for change in self.changes]
        if self.unchecked is not None:
            notes.append(("unchecked", self.unchecked))
        if self.processes != processes:
            sentence = (
                f"saved by {self.processes} processes, resumed by {processes}: the samples stay the same, "
                "but sums over processes may differ in their last bits"
            )
            notes.append(("processes", sentence))
        if self.versions:
            listed = "; ".join(str(difference) for difference in self.versions)
            notes.append(("versions", f"{listed}: the last bits of numbers may differ"))
        return notes


class RunCheckpoints:
    """Saves and restores a run.

    Args:
        store: The run's checkpoints.
        parts: The parts of the run; its main process reads and writes, and sends the state to the others.
        updater: Holds the optimizer and the average.
        algorithm: Holds what its rollouts and losses need besides.
        state: The counters, which `restore` fills in place.
    """

    def __init__(
        self,
        store: CheckpointStore,
        parts: Parts,
        updater: Updater,
        algorithm: Algorithm[Any],
        state: RunState,
    ) -> None:
        self.store = store
        self.config = parts.config
        self.engine = parts.engine
        self.policy = parts.policy
        self.scorer = parts.scorer
        self.updater = updater
        self.algorithm = algorithm
        self.state = state
        # at once, because the files are those that have just been read
        self.contents = contents(parts.config, parts.data.judges, parts.data.fingerprints)
        check_processes(self.engine, self.contents | code_values(self.config))

    @cached_property
    def fingerprints(self) -> list[dict[str, Any]]:
        """Fingerprint of each reward; computed once, because all weights are read for it."""
        return self.scorer.fingerprints()

    def save(self) -> None:
        """Write a checkpoint of the state after the last finished iteration, unless there is one.

        Raises:
            UserError: The disk refuses, a tensor is not finite, or the processes have drifted apart.
        """
        # Before anything is written: processes that drifted apart must not save one of them as the run.
        self.engine.check_agreement(self.updater.parameters)
        self.engine.from_main(self._write)

    def _write(self) -> None:
        state = self.state
        if self.store.latest() == state.iteration:
            return
        # Tensors go to safetensors and the rest to JSON: nothing of a checkpoint is pickled.
        optimizer, optimizer_state = flatten_optimizer(self.updater.optimizer)
        tensors = {"adapter": self.policy.adapter_tensors(), "optimizer": optimizer}
        if self.updater.average is not None:
            tensors["average"] = name_average(self.updater.average)
        tensors |= self.algorithm.tensors()
        history = [{"iteration": record.iteration, **record.health.to_json()} for record in state.history]
        self.store.save(
            state.iteration,
            tensors,
            {
                "iteration": state.iteration,
                "rollouts": state.rollouts,
                "further_prompts": state.further_prompts,
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
                "contents": self.contents,
                "changes": state.changes,
                "processes": self.engine.world_size,
                "versions": versions(),
            },
        )

    def restore(self, step: int | None = None, allowed: Sequence[str] = ()) -> Restored:
        """Restore adapter, optimizer, average and counters from a checkpoint.

        Args:
            step: Iteration after which it was saved; None: the newest. Later ones are set aside once this one
                has proved sound.
            allowed: Keys, or sections of them, that may differ from the checkpoint.

        Raises:
            UserError: It is not there, is damaged, or belongs to another recipe, base, data, rewards or code.
        """
        tensors: dict[str, Tensor] | None = None  # stays None in all processes but the main one

        def read() -> Any:
            nonlocal tensors
            # In the main process alone: the others may have no such folder.
            latest = self.store.latest() if step is None else step
            assert latest is not None
            checkpoint = self.store.load(latest)
            lacking = [key for key in NEEDED if key not in checkpoint.state]
            if lacking:
                raise UserError(
                    f"the checkpoint of step {latest} lacks {', '.join(lacking)}",
                    hint="It is of another version or another program; resume with the one that saved it.",
                )
            changes = self._check_same_run(checkpoint.state, allowed)
            if checkpoint.step > self.config.train.iterations:
                raise UserError(
                    f"train.iterations={self.config.train.iterations}, but {checkpoint.step} are finished",
                    hint="Give a larger number, or go back with --from.",
                )
            # All checks have passed: only from here on does the run's folder change.
            self.store.rewind(latest)
            tensors = {}
            for entry, group in checkpoint.tensors.items():
                tensors |= {f"{entry}{SEPARATOR}{name}": tensor for name, tensor in group.items()}
            return {"state": checkpoint.state, "changes": [[c.key, c.old, c.new] for c in changes]}

        received = self.engine.from_main(read)
        saved: dict[str, Any] = received["state"]
        entries: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.engine.tensors_from_main(tensors).items():
            entry, _, name = key.partition(SEPARATOR)
            entries.setdefault(entry, {})[name] = tensor
        self._fill(saved, entries)
        changes = [Difference(*change) for change in received["changes"]]
        records = [change.record(self.state.iteration) for change in changes]
        self.state.changes = [*saved.get("changes", []), *records]
        return Restored(
            history=saved["history"],
            changes=changes,
            unchecked=None if "contents" in saved else UNCHECKED,
            processes=saved["processes"],
            versions=[d for d in differing(saved["versions"], versions()) if d.key != "git"],
        )

    def _fill(self, saved: Mapping[str, Any], entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.policy.load_adapter_tensors(dict(entries["adapter"]))
        # an optimizer that has not taken a step has no tensors
        restore_optimizer(self.updater.optimizer, entries.get("optimizer", {}), saved["optimizer"])
        # The optimizer came with the settings it was saved with; the recipe may have others now.
        self.updater.apply_recipe()
        if self.updater.average is not None:
            if "average" not in entries:
                raise UserError(
                    "the checkpoint has no moving average, which train.ema_decay asks for",
                    hint="Set train.ema_decay to null, or start a new run.",
                )
            load_average(self.updater.average, entries["average"])
        self.algorithm.load(entries)
        self.updater.skipped_in_a_row = saved["skipped_in_a_row"]
        self.state.iteration = saved["iteration"]
        self.state.rollouts = saved["rollouts"]
        # older versions drew no further prompts, and so did not count them
        self.state.further_prompts = saved.get("further_prompts", 0)
        self.state.seconds = saved["seconds"]
        self.state.wasted_in_a_row = saved["wasted_in_a_row"]
        self.state.processes = saved["processes"]
        self.state.health = saved["health"]

    def _check_same_run(self, saved: Mapping[str, Any], allowed: Sequence[str]) -> list[Difference]:
        """Compare a checkpoint's recipe and what it names with what they are now.

        Returns:
            The differences that are allowed.

        Raises:
            UserError: Lists those that are not.
        """
        saved_config = self._saved_config(saved)
        saved_contents = saved.get("contents", {})
        # Everything that differs is listed at once, and allowed or refused key by key.
        differences = differing_settings(saved_config, self.config, saved_contents)
        if saved_contents:
            differences += differing(saved_contents, self.contents)
        differences += differing(
            reward_values("rewards", saved["rewards"]), reward_values("rewards", self.fingerprints)
        )
        saved_code = {f"code.{module}": digest for module, digest in saved["code"].items()}
        differences += differing(saved_code, code_values(self.config))
        refused = [difference for difference in differences if not difference.is_about(allowed)]
        if refused:
            keys = " ".join(f"--allow-change {difference.key}" for difference in refused)
            raise UserError(
                "cannot resume exactly:\n  " + "\n  ".join(str(difference) for difference in refused),
                hint=f"Restore what has changed, or start a new run. If it is meant: {keys}. Without that "
                f"only these settings may change: {', '.join(FREE)}.",
            )
        return differences

    def _saved_config(self, saved: Mapping[str, Any]) -> Config:
        try:
            config = Config.model_validate_json(json.dumps(saved["config"]))
        except ValidationError as error:
            version = saved["versions"]["customized_grpo"]
            raise UserError(
                f"the recipe of the checkpoint does not hold: {error.errors()[0]['msg']}",
                hint=f"It was saved by customized-grpo {version}; resume with that version.",
            ) from error
        return settled(self.store.folder.parent, config)
