"""What to call a base model in public."""

from __future__ import annotations

from pathlib import Path

from customized_grpo.config.schema import ModelConfig
from customized_grpo.hub import is_hub_id
from customized_grpo.policies.checkpoints import CHECKPOINTS
from customized_grpo.policies.families import get_family


def modelspec_architecture(model: ModelConfig) -> str | None:
    """Return `modelspec.architecture` of an adapter, by the names that sd-scripts and musubi-tuner write.

    None if the base is neither a known checkpoint nor of a family with such a name.
    """
    name = get_family(model.family).other_programs.modelspec
    checkpoint = CHECKPOINTS.get(model.path)
    if checkpoint is not None and checkpoint.modelspec is not None:
        name = checkpoint.modelspec
    return None if name is None else f"{name}/lora"


def public_name(path: str) -> str:
    """Return what to call a model or file in public: a hub id, or the last part of a path of this machine."""
    repository, colon, _ = path.partition(":")
    return path if is_hub_id(repository if colon else path) else Path(path).name
