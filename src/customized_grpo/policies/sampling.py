"""How images are drawn with a model: what a checkpoint's card, a recipe or an adapter's file says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from customized_grpo.reference_sizes import ReferenceSize


@dataclass(frozen=True)
class Sampling:
    """Settings that images depend on, apart from weights, prompt, references and seed.

    Attributes:
        guidance: Guidance scale; what it does is up to the family.
        steps: Denoising steps, all without noise.
        mu: Shift of the noise levels; None: by the number of image tokens, as the pipeline does.
        max_text_tokens: Length to which prompts are padded or cut.
        height: Of an image, in pixels.
        width: Of an image, in pixels.
        precision: Type of the products in the transformer and in decoding.
        reference_fit: Whether references keep their aspect, are cut to that of an image, or get a border.
        reference_size: Size of those that keep their aspect.
        options: The family's own options that are not at their defaults.
    """

    guidance: float
    steps: int
    mu: float | None = None
    max_text_tokens: int = 512
    height: int = 1024
    width: int = 1024
    precision: Literal["fp32", "bf16"] = "bf16"
    reference_fit: Literal["whole", "crop", "pad"] = "whole"
    reference_size: ReferenceSize = "image"
    options: Mapping[str, Any] = field(default_factory=dict)
