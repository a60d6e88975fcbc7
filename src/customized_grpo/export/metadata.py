"""The header of an exported file, for programs and for people who have only the file.

Keys: `modelspec.*` (https://github.com/Stability-AI/ModelSpec), `ss_*` (kohya's sd-scripts, read by most
interfaces), `lora_adapter_metadata` (diffusers), and `cgrpo.*` for what only this package knows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime

import torch
from torch import Tensor

from customized_grpo.config.schema import ModelConfig
from customized_grpo.export.adapter import RunAdapter
from customized_grpo.export.formats import FormatName
from customized_grpo.hub import public_name
from customized_grpo.policies.checkpoints import CHECKPOINTS
from customized_grpo.policies.families import get_family
from customized_grpo.policies.lora_scale import FILE_PREFIX, METADATA_KEY
from customized_grpo.policies.provenance import Provenance


def header(
    adapter: RunAdapter, name: FormatName, tensors: Mapping[str, Tensor], *, title: str
) -> dict[str, str]:
    """Return the metadata of a file.

    Args:
        adapter: The adapter that is exported.
        name: The format.
        tensors: The file's tensors; the header has their hash.
        title: Name of the run.
    """
    config = adapter.config
    model = config.model
    names = get_family(model.family).other_programs
    architecture = modelspec_architecture(model)
    alpha = adapter.rank if name == "comfyui" else adapter.alpha  # in "comfyui" the scale is part of B
    facts: dict[str, str | None] = {
        "format": "pt",
        # a file without an architecture is none by that standard
        "modelspec.sai_model_spec": None if architecture is None else "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.description": _description(adapter),
        "modelspec.date": datetime.now(UTC).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{model.width}x{model.height}",
        "modelspec.hash_sha256": f"0x{tensor_hash(tensors)}",
        "ss_network_module": names.network_module,
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_base_model_version": base_version(model),
        "ss_sd_model_name": public_name(model.path),
        "ss_seed": str(config.run.seed),
        # a step of kohya's is an optimizer step, not an iteration
        "ss_steps": str(adapter.iteration * config.train.updates_per_iteration * config.train.inner_epochs),
        "ss_learning_rate": f"{config.train.learning_rate:g}",
        **Provenance.from_config(config).to_header(),
        "cgrpo.iteration": str(adapter.iteration),
        "cgrpo.is_average": json.dumps(adapter.is_average),
        "cgrpo.config_hash": str(adapter.state["config_hash"]),
        "cgrpo.version": str(adapter.state["versions"]["customized_grpo"]),
    }
    if name == "diffusers":
        facts[METADATA_KEY] = _for_diffusers(adapter)
    return {key: value for key, value in facts.items() if value is not None}


def modelspec_architecture(model: ModelConfig) -> str | None:
    """Return `modelspec.architecture` of an adapter, by the names that sd-scripts and musubi-tuner write.

    None if the base is neither a known checkpoint nor of a family with such a name.
    """
    name = get_family(model.family).other_programs.modelspec
    checkpoint = CHECKPOINTS.get(model.path)
    if checkpoint is not None and checkpoint.modelspec is not None:
        name = checkpoint.modelspec
    return None if name is None else f"{name}/lora"


def base_version(model: ModelConfig) -> str | None:
    """Return `ss_base_model_version` of an adapter; None if no name of its base is known."""
    checkpoint = CHECKPOINTS.get(model.path)
    if checkpoint is not None and checkpoint.base_version is not None:
        return checkpoint.base_version
    return get_family(model.family).other_programs.base_version


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hex, of the tensors' names, shapes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bf16
    return digest.hexdigest()


def _description(adapter: RunAdapter) -> str:
    config = adapter.config
    rewards = " and ".join(reward.name for reward in config.rewards)
    method = f"{config.advantage.name} advantage, {config.schedule.name} weights, rewards {rewards}"
    return f"Adapter for {public_name(config.model.path)}, tuned by reinforcement learning ({method})."


def _for_diffusers(adapter: RunAdapter) -> str:
    """Return the settings of peft's LoraConfig; only those that matter, so that other versions read them."""
    config = {"r": adapter.rank, "lora_alpha": adapter.alpha, "target_modules": sorted(adapter.layers)}
    return json.dumps({FILE_PREFIX + key: value for key, value in config.items()}, sort_keys=True)
