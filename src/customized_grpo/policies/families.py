"""The families of generators: which checkpoints belong to one, how they are loaded, which policy they get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.policies.flux2 import Flux2Policy
from customized_grpo.policies.offload import Offload
from customized_grpo.policies.pipeline_policy import PipelinePolicy
from customized_grpo.policies.qwen_edit import QwenEditPolicy, load_processor

if TYPE_CHECKING:
    from customized_grpo.config.schema import ModelConfig

Build = Callable[[Any, "ModelConfig", torch.device], PipelinePolicy]


@dataclass(frozen=True)
class Family:
    """What loading needs to know of a family.

    Attributes:
        classes: Values of `_class_name` in a checkpoint's model_index.json, each with the diffusers pipeline
            that loads it.
        policy: Class of the policy.
        build: Makes the policy of a pipeline, a recipe's `model` section and a device.
        parts: Makes the parts of a pipeline that diffusers cannot load itself, from the checkpoint's path.
    """

    classes: Mapping[str, str]
    policy: type[PipelinePolicy]
    build: Build
    parts: Callable[[str], dict[str, Any]] = lambda path: {}


def _common(model: ModelConfig, device: torch.device) -> dict[str, Any]:
    return {
        "guidance": model.guidance,
        "mu": model.mu,
        "max_text_tokens": model.max_text_tokens,
        "precision": model.precision,
        "device": device,
        "offload": Offload(model.text_encoders, model.offload_vae),
    }


def _flux1(pipe: Any, model: ModelConfig, device: torch.device) -> PipelinePolicy:
    return Flux1Policy(pipe, reference_ids=model.reference_ids or "kontext", **_common(model, device))


def _flux2(pipe: Any, model: ModelConfig, device: torch.device) -> PipelinePolicy:
    return Flux2Policy(pipe, text_layers=model.text_layers, **_common(model, device))


def _qwen_edit(pipe: Any, model: ModelConfig, device: torch.device) -> PipelinePolicy:
    return QwenEditPolicy(pipe, **_common(model, device))


FAMILIES: dict[str, Family] = {
    # FLUX.1-dev has the same parts as FLUX.1-Kontext-dev, and is the base of UNO
    "flux1": Family(
        {"FluxKontextPipeline": "FluxKontextPipeline", "FluxPipeline": "FluxKontextPipeline"},
        Flux1Policy,
        _flux1,
    ),
    "flux2": Family(
        {"Flux2KleinPipeline": "Flux2KleinPipeline", "Flux2Pipeline": "Flux2Pipeline"}, Flux2Policy, _flux2
    ),
    "qwen_edit": Family(
        {"QwenImageEditPlusPipeline": "QwenImageEditPlusPipeline"},
        QwenEditPolicy,
        _qwen_edit,
        lambda path: {"processor": load_processor(path)},
    ),
}
"""Every family by its name in recipes."""
