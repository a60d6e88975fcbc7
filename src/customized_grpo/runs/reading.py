"""Reading a run back: its recipe, its checkpoints, and the adapter they hold."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from customized_grpo import __version__
from customized_grpo.config import Config, load_config
from customized_grpo.config.places import settle_paths
from customized_grpo.config.schema import ModelConfig
from customized_grpo.errors import UserError
from customized_grpo.policies.base_files import fingerprint_base
from customized_grpo.policies.lora import load_average
from customized_grpo.policies.policy import Policy
from customized_grpo.runs.checkpoints import Checkpoint, CheckpointStore
from customized_grpo.runs.folder import CONFIG, STARTED, VERSIONS, RunFolder, is_run_folder


def run_config(run_dir: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the resolved recipe of a run, wherever its folder and the working directory are now.

    Args:
        run_dir: Folder of the run.
        overrides: Settings that replace the recipe's.

    Raises:
        UserError: The folder is not that of a run, or its recipe does not hold; the hint says which version
            wrote it, if it was another one.
    """
    if not is_run_folder(run_dir):
        raise UserError(f"{run_dir} is not the folder of a run")
    try:
        # its folder may have been moved since the recipe was written
        # as JSON: an override would take quotes around a folder's name for its own
        where = f"run.dir={json.dumps(str(run_dir))}"
        return settled(run_dir, load_config(str(run_dir / CONFIG), [*overrides, where]))
    except UserError as error:
        version = _version(run_dir)
        if version in (None, __version__):
            raise
        hint = f"The run was made by customized-grpo {version}; use that version."
        raise UserError(error.message, hint=hint) from error


def settled(run_dir: Path, config: Config) -> Config:
    """Return a recipe of a run whose relative paths are found from here, as they were when it was started.

    Raises:
        UserError: The file that says where it was started is damaged.
    """
    started = RunFolder(run_dir).read_json(STARTED) or {}
    folder = started.get("folder")
    if not isinstance(folder, str) or Path(folder) == Path.cwd():
        return config
    return settle_paths(config, Path(folder))


def _version(run_dir: Path) -> str | None:
    """Return the version of this package that made a run; None if its folder does not say."""
    try:
        versions = RunFolder(run_dir).read_json(VERSIONS) or {}
    except UserError:
        return None
    version = versions.get("customized_grpo")
    return version if isinstance(version, str) else None


BEST = "best.json"
"""File of a run that says which of its checkpoints is the best, see `checkpoint.best`."""

Step = int | Literal["best"] | None
"""A checkpoint: the iteration after which it was saved, the best one, or the newest."""


def run_checkpoint(run_dir: Path, step: Step = None) -> Checkpoint:
    """Return a checkpoint of a run, verified.

    Args:
        run_dir: Folder of the run.
        step: Iteration after which it was saved, or "best"; None means the newest.

    Raises:
        UserError: There is none, or not that one, or it is damaged.
    """
    store = CheckpointStore(run_dir / "checkpoints", keep=0)
    newest = store.latest()
    if newest is None:
        raise UserError(f"{run_dir} has no complete checkpoint", hint="Train it first: cgrpo train.")
    if step == "best":
        step = _best_step(run_dir)
    return store.load(newest if step is None else step)


def _best_step(run_dir: Path) -> int:
    best = RunFolder(run_dir).read_json(BEST)
    if best is None:
        raise UserError(
            f"{run_dir} knows no best checkpoint",
            hint="Set checkpoint.best to a held-out measure, such as judge/identity, before training.",
        )
    step = best.get("iteration")
    if not isinstance(step, int):
        raise UserError(f"{run_dir / BEST} is damaged: it names no iteration")
    return step


def warn_of_other_base(checkpoint: Checkpoint, model: ModelConfig) -> None:
    """Say on stderr if the base that was loaded is not the one that the checkpoint was trained on.

    A checkpoint of an older version does not know the files of its base, and nothing is said.

    Args:
        checkpoint: Of a run.
        model: The settings with which the base was loaded.
    """
    prefix = "model.files."
    trained = {}
    for key, digest in checkpoint.state.get("contents", {}).items():
        if key.startswith(prefix):
            trained[key.removeprefix(prefix)] = digest
    if model.start_lora is None:  # not loaded, because the checkpoint holds the whole adapter
        trained.pop("start_lora", None)
    now = fingerprint_base(model) if trained else {}
    other = [name for name in sorted({*trained, *now}) if trained.get(name) != now.get(name)]
    if other:
        names = ", ".join(other[:3]) + (", ..." if len(other) > 3 else "")
        print(f"warning: the base is not the one that this run was trained on: {names}", file=sys.stderr)


def load_checkpoint(policy: Policy, checkpoint: Checkpoint, *, average: bool) -> None:
    """Overwrite the adapter with a checkpoint's, or with its moving average.

    Raises:
        UserError: The checkpoint is of another base, rank or target.
    """
    policy.load_adapter_tensors(dict(checkpoint.tensors["adapter"]))
    if average:
        load_average(policy.trainable_parameters(), checkpoint.tensors["average"])
