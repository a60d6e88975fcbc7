"""From the `model` section of a recipe to a policy, with errors that name the file and the fix."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from customized_grpo.embedded import EMBEDDED, embedded_folder, load_embedded
from customized_grpo.errors import UserError
from customized_grpo.hub import MODULAR_INDEX
from customized_grpo.hub import explained as explained_hub
from customized_grpo.libraries import quiet
from customized_grpo.policies.checkpoint_files import find_pipeline_class, read_architecture, read_index
from customized_grpo.policies.families import get_family, read_options
from customized_grpo.policies.fuse import check_fused_loras, fuse_lora
from customized_grpo.policies.out_of_memory import explained
from customized_grpo.policies.parts import (
    check_pipeline,
    check_tokenizers,
    class_names,
    find_class,
    load_parts,
)
from customized_grpo.policies.policy import Policy
from customized_grpo.policies.quantisation import check_quantisation, quantise_layers
from customized_grpo.policies.settings import PolicySettings, Precision
from customized_grpo.policies.sharding import shard
from customized_grpo.policies.start_adapter import read_start, shaped_like_start
from customized_grpo.weights.models import explained as explained_loading
from customized_grpo.weights.models import load_model

if TYPE_CHECKING:
    from customized_grpo.config.schema import ModelConfig


def load_policy(model: ModelConfig, *, seed: int, device: torch.device | str | None = None) -> Policy:
    """Load a generator and put an adapter on it: a fresh one, or that of `model.start_lora`.

    The weights are read on the CPU and a LoRA is fused there. Then layers are quantised on the device one by
    one, and the other parts follow: the device never holds more than the final model and one layer.

    Args:
        model: The recipe's `model` section.
        seed: Seed of the adapter's weights, the run's.
        device: Where to run; None means as `model.device` says, which several processes cannot share.

    Raises:
        UserError: The weights are missing, unreachable, gated, of another family or incomplete, cannot be
            quantised or sharded as the recipe says, or do not fit the memory.
    """
    target = pick_device(model.device) if device is None else torch.device(device)
    model = shaped_like_start(model)
    if model.quantisation is not None:
        check_quantisation(model.quantisation, target)
    check_fused_loras(model)
    with explained(model):
        return _load(model, seed, target)


def _load(model: ModelConfig, seed: int, device: torch.device) -> Policy:
    pipe = load_pipeline(model.path, family=model.family, precision=model.precision)
    # Before quantisation: an update added to rounded weights would be rounded away.
    for lora in model.fuse_lora:
        fuse_lora(pipe, lora.path, lora.scale)
    if model.quantisation is not None:
        quantise_layers(pipe.transformer, model.quantisation, device)
    if model.shard:
        # Before the adapter, which every process keeps whole.
        shard(pipe.transformer, device)
    return assemble_policy(pipe, model, seed=seed, device=device)


def assemble_policy(pipe: Any, model: ModelConfig, *, seed: int, device: torch.device) -> Policy:
    """Return the policy of a pipeline, with an adapter.

    Args:
        pipe: The pipeline, its layers quantised or sharded already if they are to be.
        model: The recipe's `model` section; with `start_lora`, shaped like that.
        seed: Seed of the adapter's weights.
        device: Where to run.
    """
    policy_class = get_family(model.family).policy_class()
    policy = policy_class(pipe, PolicySettings.from_config(model, device), read_options(model))
    _spend_warning_of_norms()
    policy.grid(model.height, model.width)  # refuses a size that the model cannot make
    policy.add_adapter(rank=model.lora.rank, alpha=model.lora.alpha, target=model.lora.target, seed=seed)
    if model.start_lora is not None:
        policy.start_from(read_start(model))
    policy.set_gradient_checkpointing(model.gradient_checkpointing)
    # Last, because a block is compiled with the adapter that is in it.
    if model.compile:
        policy.compile_blocks()
    return policy


def _spend_warning_of_norms() -> None:
    """Let torch warn, unheard, of a norm under autocast that is right but not fused.

    It does so once in a process, of the first such norm, and nobody can act on it. A filter would stay behind
    in the user's own process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        nn.functional.rms_norm(torch.zeros(1, 2, dtype=torch.bfloat16), (2,), torch.ones(2))


def load_pipeline(path: str, *, family: str = "flux1", precision: Precision = "bf16") -> Any:
    """Load the frozen pipeline: an embedded one, a folder in diffusers' layout, or a hub id.

    With precision "bf16" the weights are held in bf16, except for the VAE's, whose rounding would be seen.

    Raises:
        UserError: See `load_policy`.
    """
    with quiet():
        if path in EMBEDDED:
            return _load_embedded(path, family, precision)
        pipeline_name = find_pipeline_class(path, family)
        import diffusers

        pipeline_class = getattr(diffusers, pipeline_name)
        folder = _local_folder(pipeline_class, path)
        half = {"default": torch.bfloat16, "vae": torch.float32}
        dtype = half if precision == "bf16" else torch.float32
        policy_class = get_family(family).policy_class()
        parts = load_parts(folder, dtype, policy_class.extra_parts)
        with explained_loading(f"model.path {path!r}: the pipeline could not be loaded"):
            pipe = policy_class.assemble(pipeline_class, folder, dtype, parts)
        check_tokenizers(pipe, path)
        return pipe


def load_transformer(model: ModelConfig, dtype: torch.dtype) -> nn.Module:
    """Load the frozen transformer alone, on the CPU, as it was published.

    Raises:
        UserError: See `load_policy`.
    """
    part = read_architecture(model).transformer
    what = f"model.path {model.path!r}"
    transformer_class = find_class(part.library, part.name, what)
    path = str(embedded_folder(model.path)) if model.path in EMBEDDED else model.path
    folder = Path(path).expanduser() / "transformer"
    with quiet():
        if folder.is_dir():
            return load_model(transformer_class, str(folder), what=what, torch_dtype=dtype)
        with explained_hub(path, "its transformer"):
            return load_model(transformer_class, path, what=what, subfolder="transformer", torch_dtype=dtype)


def _local_folder(pipeline_class: Any, path: str) -> Path:
    """Return a checkpoint's folder, which is fetched from the hub if need be."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    with explained_hub(path, "its files"):
        if hasattr(pipeline_class, "download"):
            return Path(pipeline_class.download(path, use_safetensors=True))
        return _modular_snapshot(path)


def _modular_snapshot(path: str) -> Path:
    """Fetch what a modular index names of its own repository, which may hold more than the pipeline needs."""
    from huggingface_hub import snapshot_download

    names = class_names(read_index(path), path)
    patterns = [MODULAR_INDEX]
    for name in (*names, "scheduler"):
        patterns += [f"{name}/*.{ending}" for ending in ("json", "safetensors", "txt", "jinja")]
    return Path(snapshot_download(path, allow_patterns=patterns))


def _load_embedded(path: str, family: str, precision: Precision) -> Any:
    pipe = load_embedded(path)
    if type(pipe).__name__ not in get_family(family).pipelines:
        raise UserError(
            f"model.path {path!r} is a {type(pipe).__name__}, which model.family {family} does not draw with",
            hint=f"Start from the preset {path}.",
        )
    if precision == "bf16":
        pipe.transformer.to(torch.bfloat16)
    check_pipeline(pipe, path)
    return pipe


def pick_device(name: str) -> torch.device:
    """Return the device that a recipe names; "auto" is the first accelerator, else the CPU.

    Raises:
        UserError: The named accelerator is not there.
    """
    # One of several GPUs: launched processes are given theirs by the engine.
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    available = {
        "cpu": True,
        "mps": torch.backends.mps.is_available(),
        "cuda": (device.index or 0) < torch.cuda.device_count(),
    }
    if not available[device.type]:
        raise UserError(f"model.device {name!r}: torch sees no such device", hint='Use "auto" or "cpu".')
    return device
