"""What a recipe says about a generator, as its policy takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from customized_grpo.policies.offload import EVERYTHING_STAYS, Offload

if TYPE_CHECKING:
    from customized_grpo.config.schema import ModelConfig

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class PolicySettings:
    """Settings of a policy that every family has; the family's own ones are its options.

    Attributes:
        guidance: Guidance scale; what it does is up to the family.
        max_text_tokens: Length T to which prompts are padded or cut, always the same, so that a sample does
            not depend on its batch.
        mu: Shift of the noise levels, sigma' = e^mu / (e^mu + 1 / sigma - 1); None: as the pipeline's.
        precision: Type of the products in the transformer and in decoding. What goes into `velocity` and
            comes out of it is fp32 all the same, and so is what encodes prompts and references.
        device: Where everything runs.
        offload: Which parts wait on the CPU between their calls.
    """

    guidance: float
    max_text_tokens: int
    mu: float | None = None
    precision: Precision = "bf16"
    device: torch.device | str = "cpu"
    offload: Offload = EVERYTHING_STAYS

    @classmethod
    def from_config(cls, model: ModelConfig, device: torch.device) -> PolicySettings:
        """Return the settings of a recipe's `model` section."""
        return cls(
            guidance=model.guidance,
            max_text_tokens=model.max_text_tokens,
            mu=model.mu,
            precision=model.precision,
            device=device,
            offload=Offload(model.text_encoders, model.offload_vae),
        )
