"""What a run has learnt: its adapter, from the newest or a named checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from customized_grpo.config import Config, load_config
from customized_grpo.errors import UserError
from customized_grpo.policies.loading import load_policy
from customized_grpo.policies.lora import load_average
from customized_grpo.policies.policy import Policy
from customized_grpo.runs.checkpoints import Checkpoint, CheckpointStore
from customized_grpo.runs.folder import RunFolder

CONFIG = "config.yaml"


def is_run(path: Path) -> bool:
    """Return whether the path is the folder of a run."""
    return (path / CONFIG).is_file()


def run_config(run_dir: Path) -> Config:
    """Return the resolved recipe of a run, wherever its folder is now.

    Raises:
        UserError: It is not a recipe of this version of the package; the hint says which wrote it.
    """
    try:
        return load_config(str(run_dir / CONFIG), [f"run.dir={json.dumps(str(run_dir))}"])
    except UserError as error:
        versions = RunFolder(run_dir).read_json("versions.json") or {}
        wrote = versions.get("customized_grpo", "an unknown version")
        hint = f"The run was made by customized-grpo {wrote}; use that version."
        raise UserError(error.message, hint) from error


def run_checkpoint(run_dir: Path, step: int | None = None) -> Checkpoint:
    """Return a checkpoint of a run, verified.

    Args:
        run_dir: Folder of the run.
        step: Iteration after which it was saved; None means the newest.

    Raises:
        UserError: There is none, or not that one, or it is damaged.
    """
    store = CheckpointStore(run_dir / "checkpoints", keep=0)
    newest = store.latest()
    if newest is None:
        raise UserError(f"{run_dir} has no complete checkpoint", "Train it first: cgrpo train.")
    return store.load(newest if step is None else step)


def load_run(run_dir: Path) -> tuple[Config, Policy]:
    """Return the recipe and the policy of a run, as its newest checkpoint has it.

    With evaluation.use_ema the adapter is the average, which is what the run itself evaluates.

    Raises:
        UserError: The run has no complete checkpoint, or its model cannot be loaded.
    """
    config = run_config(run_dir)
    checkpoint = run_checkpoint(run_dir)
    policy = load_policy(config.model, seed=config.run.seed)
    load_checkpoint(policy, checkpoint, average=config.evaluation.use_ema)
    return config, policy


def load_checkpoint(policy: Policy, checkpoint: Checkpoint, *, average: bool) -> None:
    """Overwrite the adapter with a checkpoint's, or with its moving average.

    Raises:
        UserError: The checkpoint is of another base, rank or target.
    """
    policy.load_adapter_tensors(dict(checkpoint.tensors["adapter"]))
    if average:
        load_average(policy.trainable_parameters(), checkpoint.tensors["average"])
