"""What a run is made of, key by key, so that a resumed run and the processes of one run can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from customized_grpo.config import Config, diff_configs
from customized_grpo.config.loading import leaves
from customized_grpo.config.reference import ITEM, generic
from customized_grpo.engine.agreement import shown
from customized_grpo.engine.environment import numeric_variables
from customized_grpo.evaluation.held_out import Judges
from customized_grpo.evaluation.judges import RewardJudges
from customized_grpo.extensions import code_fingerprints
from customized_grpo.policies.base_files import fingerprint_base
from customized_grpo.runs.folder import installation

FREE = (
    "run.dir",
    "run.overwrite",
    "run.process_timeout_s",
    "run.deterministic",
    "trackers",
    "checkpoint",
    "model.cache",
    "model.device",
    "model.text_encoders",
    "model.offload_vae",
    f"rewards.{ITEM}.executor",
    f"rewards.{ITEM}.on_failure",
    "evaluation.every",
    "evaluation.on_alarm",
    "train.iterations",
    "train.reuse_rollout_graph",
    "train.max_nonfinite_steps",
    "train.max_unscored_share",
    "train.max_wasted_iterations",
)
"""Settings, or sections of them, that a resumed run may change: no number of an iteration depends on them."""

CONTENT = {
    "model.path": "model.files",
    f"model.fuse_lora.{ITEM}.path": f"model.files.fuse_lora.{ITEM}",
    "model.start_lora": "model.files.start_lora",
    "data.train": "data.train",
    f"data.mix.{ITEM}.train": f"data.mix.{ITEM}",
    "data.held_out": "data.held_out",
    "evaluation.prompts": "data.held_out",
}
"""Settings that only say where something is, each with the key of its content, which counts instead."""

FREE_IF_CONSTANT = "train.iterations"
"""The one of them on which the learning rate depends, unless it is constant after its warm-up."""

OWN_TO_A_PROCESS = ("run.dir", "run.process_timeout_s", "model.cache", "model.device")
"""Settings that may differ between the processes of one run."""

SCORES_DEPEND_ON = (
    *("model", "data.held_out", "data.reference_size", "rewards", "segmenter", "evaluation", "rollout.steps"),
    # the rows that an embedded world holds out
    *("data.kind", "data.seed", "data.held_out_subjects", "data.held_out_prompts_per_subject"),
    *("code", "environment"),
)
"""Keys on which the scores of an evaluation depend: across a change, evaluations cannot be compared."""


@dataclass(frozen=True)
class Difference:
    """A key whose value is another one.

    Attributes:
        key: Dotted path of a setting, or of what it names.
        old: In the checkpoint; None if it was not there.
        new: Now; None if it is not there any more.
    """

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {shown(self.old)} in the checkpoint, {shown(self.new)} now"

    def record(self, iteration: int) -> dict[str, Any]:
        """Return the difference as JSON, with the iteration after which it came."""
        return {"iteration": iteration, "key": self.key, "old": self.old, "new": self.new}

    def is_about(self, keys: Iterable[str]) -> bool:
        """Return whether the key is one of these, or lies in a section that is."""
        return _is_about(self.key, keys)


def contents(config: Config, judges: Judges | None, rows: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return what the settings name: the base's files, the rows and their images, judges, the environment.

    Args:
        config: The recipe, whose base has been loaded.
        judges: The held-out judges.
        rows: Fingerprint of rows and images, by part of the data.

    Raises:
        UserError: A file cannot be read.
    """
    values: dict[str, Any] = {}
    for name, digest in fingerprint_base(config.model).items():
        values[f"model.files.{name}"] = digest
    for part, fingerprint in rows.items():
        values |= _under(f"data.{part}", fingerprint)
    if isinstance(judges, RewardJudges):
        values |= reward_values("evaluation.judges", judges.fingerprints())
    return values | _under("environment", numeric_variables())


def reward_values(section: str, fingerprints: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fingerprints of rewards, key by key."""
    values: dict[str, Any] = {}
    for number, fingerprint in enumerate(fingerprints):
        values |= _under(f"{section}.{number}.{fingerprint.get('name', '')}", fingerprint)
    return values


def code_values(config: Config) -> dict[str, Any]:
    """Return the hash of every module of foreign code that the recipe names."""
    return _under("code", code_fingerprints(config.part_names))


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Return the keys whose values differ, those of `old` first."""
    keys = dict.fromkeys((*old, *new))
    return [Difference(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]


def differing_settings(old: Config, new: Config, contents: Mapping[str, Any]) -> list[Difference]:
    """Return the settings that differ and may change a number.

    Args:
        old: The checkpoint's recipe.
        new: The recipe now.
        contents: Of the checkpoint. A path whose content is in it is no difference: the content is compared.
    """
    differences = [Difference(*difference) for difference in diff_configs(old, new)]
    is_constant = new.train.learning_rate_schedule == "constant"
    # More iterations stretch a schedule that falls to its end, and so change every later rate.
    free = [key for key in FREE if is_constant or key != FREE_IF_CONSTANT]
    return [
        difference
        for difference in differences
        if not _is_about(generic(difference.key), free) and not _has_content(difference.key, contents)
    ]


def _has_content(key: str, contents: Mapping[str, Any]) -> bool:
    content = CONTENT.get(generic(key))
    if content is None:
        return False
    # The number in a key (`data.mix.1.train`) says which content is meant.
    number = next((part for part in key.split(".") if part.isdecimal()), "")
    content = content.replace(ITEM, number)
    # a base without known files is compared by its path, although the files of LoRAs may be known
    entries = [entry for entry in contents if entry == content or "_lora" not in entry]
    return any(_is_about(entry, [content]) for entry in entries)


def process_values(config: Config) -> dict[str, Any]:
    """Return what all processes of a run must have in common before anything is loaded."""
    values = {}
    for key, value in leaves(config).items():
        # Paths may differ between hosts; what lies there is compared once it is read.
        if not _is_about(key, OWN_TO_A_PROCESS) and generic(key) not in CONTENT:
            values[key] = value
    values |= _under("versions", installation())
    return values | code_values(config) | _under("environment", numeric_variables())


def _under(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for key, value in values.items()}


def _is_about(key: str, keys: Iterable[str]) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in keys)
