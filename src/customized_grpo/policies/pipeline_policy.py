"""What the families have in common: a frozen diffusers pipeline, one adapter, one autocast context."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.policies import lora
from customized_grpo.policies.base import Conditioning
from customized_grpo.policies.offload import Offload, Placement
from customized_grpo.policies.tokens import PATCH, Grid

Precision = Literal["fp32", "bf16"]


class PipelinePolicy(ABC):
    """The half of a `Policy` that does not depend on the family.

    A family adds geometry, encoding, noise levels, `velocity` and decoding, and calls the transformer through
    `_call_transformer` alone.

    Args:
        pipe: The pipeline; it is moved to its places, frozen and put into eval mode.
        guidance: Guidance scale; what it does is the family's.
        mu: Shift of the noise levels, sigma' = e^mu / (e^mu + 1 / sigma - 1); None: as the pipeline's.
        max_text_tokens: Length T of the text, always the same, so that a sample does not depend on its batch.
        precision: Type of the products in the transformer and in decoding; in and out of `velocity` all is
            fp32, and so is what encodes prompts and references.
        device: Where everything runs.
        offload: Which parts wait on the CPU between their calls.

    Raises:
        UserError: mu is given, but the checkpoint's noise levels are not shifted by it.
    """

    LORA_TARGET: ClassVar[str]
    """Regular expression of the layers worth an adapter, see `default_target`."""

    VAE_MEMORY_FORMAT: ClassVar[torch.memory_format] = torch.channels_last
    """Convolutions are twice as fast so, on CPUs too."""

    def __init__(
        self,
        pipe: Any,
        *,
        guidance: float,
        mu: float | None,
        max_text_tokens: int,
        precision: Precision,
        device: torch.device | str,
        offload: Offload,
    ) -> None:
        if mu is not None and not pipe.scheduler.config.use_dynamic_shifting:
            raise UserError("model.mu: this checkpoint's noise schedule has a fixed shift", hint="Remove it.")
        self.guidance, self.mu, self.max_text_tokens = guidance, mu, max_text_tokens
        self.pipe = pipe
        self.device = torch.device(device)
        self.placement = Placement(pipe, self.device, offload)
        self.transformer = pipe.transformer
        self.precision = precision
        self._in_reference = False
        self._is_compiled = False
        pipe.vae.to(memory_format=self.VAE_MEMORY_FORMAT)
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                module.requires_grad_(False).eval()

    # Geometry

    def grid(self, height: int, width: int) -> Grid:
        """Return the rows and columns of tokens of an image, in pixels.

        Raises:
            UserError: The size is not a multiple of the side of a token.
        """
        side = PATCH * self.pipe.vae_scale_factor
        if height % side or width % side:
            raise UserError(f"size {height}x{width}: this model needs multiples of {side} pixels")
        return height // side, width // side

    def n_tokens(self, height: int, width: int) -> int:
        """Return N, the number of tokens of an image."""
        rows, columns = self.grid(height, width)
        return rows * columns

    # Noise levels

    def sigmas(self, steps: int, n_tokens: int) -> Tensor:
        """Return noise levels [steps + 1], fp32, on the CPU: 1, 1 - 1/steps, ..., 1/steps, shifted; then 0.

        Shift and spacing are those of the pipeline and the checkpoint's scheduler, a copy of which is asked.

        Args:
            steps: Number of denoising steps.
            n_tokens: Number N of image tokens, references not counted; decides the shift unless mu is given.
        """
        scheduler = copy.deepcopy(self.pipe.scheduler)
        mu = self._shift(steps, n_tokens) if self.mu is None else self.mu
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu, device="cpu")
        sigmas = scheduler.sigmas.to(dtype=torch.float32, copy=True)
        assert len(sigmas) == steps + 1 and sigmas[-1] == 0 and bool((sigmas.diff() < 0).all()), sigmas
        return sigmas

    # What a family adds; documented in `Policy`

    @abstractmethod
    def _shift(self, steps: int, n_tokens: int) -> float:
        """Return mu as the family's pipeline computes it."""

    @abstractmethod
    def _reference_tokens(self, images: Tensor) -> Tensor:
        """Map images [B, 3, h, w] in [0, 1] to tokens [B, R, C], fp32."""

    @abstractmethod
    def encode(
        self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]], height: int, width: int
    ) -> Conditioning:
        """Encode prompts and references of one bucket, without gradients."""

    @abstractmethod
    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        """Return initial noise [B, N, C], fp32."""

    @abstractmethod
    def velocity(self, x: Tensor, sigma: float | Tensor, conditioning: Conditioning) -> Tensor:
        """Return v [B, N, C], fp32."""

    @abstractmethod
    def decode(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return images [B, 3, height, width] in [0, 1], fp32."""

    # What encoding and sampling share

    def _all_reference_tokens(self, references: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return the tokens [B, R, C] of all references of B samples, each sample's one after the other."""
        slots = [torch.stack(list(images)) for images in zip(*references, strict=True)]
        with self.placement.vae():
            return torch.cat([self._reference_tokens(slot) for slot in slots], dim=1)

    def encoding(self) -> AbstractContextManager[None]:
        """Have the text encoders at hand inside the block, for several calls of `encode`."""
        return self.placement.text_encoders()

    def drop_text_encoders(self) -> None:
        """Free the text encoders: `encode` then raises a UserError, everything else goes on."""
        self.placement.drop_text_encoders()

    def _draw(self, generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
        """Return noise [B, *shape], fp32, sample i from generators[i] alone."""
        drawn = [torch.randn(shape, generator=one, device=one.device).to(self.device) for one in generators]
        return torch.stack(drawn)

    # Adapter

    def add_adapter(
        self, *, rank: int, alpha: float | None = None, target: str | None = None, seed: int
    ) -> None:
        """Put a fresh adapter on the transformer, see `lora.add_adapter`; None targets `default_target`."""
        target = target or self.default_target(self.transformer)
        lora.add_adapter(self.transformer, rank=rank, alpha=alpha, target=target, seed=seed)

    @classmethod
    def default_target(cls, transformer: torch.nn.Module) -> str:
        """Return the regular expression of the layers that get an adapter when the recipe names none."""
        return cls.LORA_TARGET

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        """Return the adapter's parameters, fp32, in the order of the model's layers."""
        return list(lora.adapter_parameters(self.transformer).values())

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Switch the adapter off inside the block; `velocity` then is the base's, bit for bit."""
        assert not self._in_reference, "reference() is not reentrant"
        self._in_reference = True
        try:
            with lora.adapter_off(self.transformer):
                yield
        finally:
            self._in_reference = False

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return copies of the adapter's tensors by name, for checkpoints and averages."""
        return lora.adapter_tensors(self.transformer)

    def load_adapter_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Overwrite the adapter in place; UserError, and no change, if names or shapes differ."""
        lora.load_adapter_tensors(self.transformer, tensors, "adapter")

    def save_lora(self, folder: Path) -> Path:
        """Write the adapter for diffusers' `load_lora_weights` and return the file."""
        return lora.save_file(type(self.pipe), self.transformer, folder)

    def load_lora(self, path: Path) -> None:
        """Overwrite the adapter with a saved one of the same base, rank and scale; UserError otherwise."""
        lora.load_file(self.transformer, path)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass: same numbers, less memory, more time."""
        if enabled:
            self.transformer.enable_gradient_checkpointing()
        else:
            self.transformer.disable_gradient_checkpointing()

    def compile_blocks(self) -> None:
        """Compile the transformer's repeated blocks, each kind once; call it after the adapter was added."""
        self.transformer.compile_repeated_blocks()
        self._is_compiled = True

    # Numerics

    def _call_transformer(self, **inputs: Any) -> Tensor:
        """Return the transformer's answer, computed in one way for rollouts and for training.

        A block compiled for use without gradients is fused, and in bf16 rounded, otherwise than one compiled
        for training: the first ratio would not be 1. Compiled rollouts run the graph of training, too.
        """
        with_gradients = torch.is_grad_enabled() or (self._is_compiled and not self._in_reference)
        with torch.set_grad_enabled(with_gradients), self._autocast():
            answer: Tensor = self.transformer(**inputs, return_dict=False)[0]
        return answer if torch.is_grad_enabled() else answer.detach()

    def _autocast(self) -> torch.autocast:
        """Return the one context in which the transformer runs, whatever context the caller is in.

        No cache of cast weights: a call uses each weight once, so it gains nothing, and inside a caller's
        autocast older versions of torch reuse in training what a rollout cast without gradients.
        """
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False)

    def _autocast_off(self) -> torch.autocast:
        return torch.autocast(self.device.type, enabled=False)

    def _check_call(self, x: Tensor, conditioning: Conditioning, n_tokens: int) -> None:
        """Refuse what a transformer would take without complaint, or what would lose gradients.

        Args:
            x: What `velocity` got.
            conditioning: Likewise.
            n_tokens: Image tokens that a picture of the conditioning's size has.

        Raises:
            RuntimeError: Gradients are enabled inside `reference()`; its adapter would silently get none.
        """
        if self._in_reference and torch.is_grad_enabled():
            raise RuntimeError("velocity() inside reference() needs torch.no_grad(): gradients would be lost")
        assert x.dtype == torch.float32, f"x is {x.dtype}: rounding it breaks the probability ratio"
        assert len(x) == len(conditioning), f"{len(x)} samples, conditioning for {len(conditioning)}"
        assert x.shape[1] == n_tokens, f"{x.shape[1]} image tokens, {n_tokens} expected"


def linear_shift(config: Any, n_tokens: int) -> float:
    """Return mu of a scheduler whose shift grows linearly with the number of image tokens."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    lengths = config.base_image_seq_len, config.max_image_seq_len
    mu: float = calculate_shift(n_tokens, *lengths, config.base_shift, config.max_shift)
    return mu


def reference_shapes(references: Sequence[Sequence[Tensor]]) -> list[tuple[int, int]]:
    """Return the height and width of each reference of a sample, which must be the same for every sample.

    Raises:
        ValueError: The samples are not of one bucket, or a reference is not an fp32 image in [0, 1].
    """
    wanted = [tuple(image.shape) for image in references[0]]
    for number, images in enumerate(references):
        if [tuple(image.shape) for image in images] != wanted or not wanted:
            raise ValueError(
                f"sample {number} has references {[tuple(image.shape) for image in images]}, sample 0 has "
                f"{wanted}: a batch needs at least one each, of the same sizes"
            )
        for image in images:
            in_range = image.dtype == torch.float32 and image.ndim == 3 and image.shape[0] == 3
            if not in_range or not bool(((image >= 0) & (image <= 1)).all()):
                raise ValueError(f"sample {number}: a reference is not an fp32 image [3, h, w] in [0, 1]")
    return [(shape[1], shape[2]) for shape in wanted]
