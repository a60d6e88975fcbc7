"""One interface to every generator, and what all families share: a frozen pipeline with one adapter.

Flow matching: x_s = (1 - s) x0 + s noise, v = noise - x0, and the noise level s = sigma falls from 1 to 0.

Shapes: B samples, N image tokens and R reference tokens of one sample, T text tokens, C channels of a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.policies import lora
from customized_grpo.policies.conditioning import Conditioning, reference_shapes
from customized_grpo.policies.family_checks import check_images, check_velocity
from customized_grpo.policies.noise_levels import shifted_levels
from customized_grpo.policies.offload import Placement
from customized_grpo.policies.options import NO_OPTIONS
from customized_grpo.policies.settings import PolicySettings
from customized_grpo.policies.sizes import PolicySizes
from customized_grpo.policies.tokens import Grid, pack
from customized_grpo.text_limits import TextLimit

if TYPE_CHECKING:
    from customized_grpo.fields import Section
    from customized_grpo.policies.lora_file import LoraFile


class Policy(PolicySizes, ABC):
    """A generator that is tuned: a frozen diffusers pipeline and a low-rank adapter on its transformer.

    Callers use the public methods. A family provides the abstract ones; the others have defaults that suit
    a pipeline like FLUX.1's.

    Args:
        pipe: The pipeline; its parts are moved to their places, frozen and put into eval mode.
        settings: What the recipe says.
        options: The family's own options.

    Raises:
        UserError: mu is given, but the checkpoint's noise levels are not shifted by it.
    """

    LORA_TARGET: ClassVar[str]
    """Regular expression of the layers that get an adapter, see `default_target`."""

    def __init__(self, pipe: Any, settings: PolicySettings, options: Section = NO_OPTIONS) -> None:
        if settings.mu is not None and not pipe.scheduler.config.use_dynamic_shifting:
            raise UserError("model.mu: this checkpoint's noise schedule has a fixed shift", hint="Remove it.")
        self.guidance = settings.guidance
        self.mu = settings.mu
        self.max_text_tokens = settings.max_text_tokens
        self.precision = settings.precision
        self.options = options
        self.pipe = pipe
        self.device = torch.device(settings.device)
        self.placement = Placement(pipe, self.device, settings.offload)
        self.transformer = pipe.transformer
        self._in_reference = False  # the adapter is off, or the one that training began with
        self._start: dict[str, Tensor] | None = None
        self._is_compiled = False
        pipe.vae.to(memory_format=self.VAE_MEMORY_FORMAT)
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                module.requires_grad_(False).eval()

    @classmethod
    def extra_parts(cls, path: str) -> dict[str, Any]:
        """Return the parts of a pipeline that diffusers cannot load itself, from a folder or hub id."""
        return {}

    @classmethod
    def assemble(cls, pipeline_class: Any, folder: Path, dtype: Any, parts: dict[str, Any]) -> Any:
        """Return the pipeline of a checkpoint's folder with the parts that were loaded already."""
        return pipeline_class.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, **parts)

    # Conditioning

    def text_limits(self) -> list[TextLimit] | None:
        """Return how much of a prompt each text encoder reads; None where the family does not say."""
        return None

    def encoding(self) -> AbstractContextManager[None]:
        """Have the text encoders on the device inside the block, for several calls of `encode`."""
        return self.placement.text_encoders()

    def drop_text_encoders(self) -> None:
        """Free the text encoders: `encode` then raises a UserError, everything else goes on."""
        self.placement.drop_text_encoders()

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]], height: int, width: int
    ) -> Conditioning:
        """Encode prompts and references of one bucket; once per prompt, then repeat the result for its group.

        Args:
            prompts: B prompts.
            references: For each prompt the same number of fp32 images [3, h, w] in [0, 1], which may be none
                in a family of text to image; the i-th images of all prompts have one size.
            height: Height of the images to generate, in pixels.
            width: Width of the images to generate, in pixels.

        Raises:
            ValueError: The samples are not of one bucket, or a reference is not an fp32 image in [0, 1].
            UserError: A size, of the images or of a reference, is not a multiple of the side of a token; or
                a prompt is too long, in a family that does not cut them.
        """
        if not prompts or len(prompts) != len(references):
            raise ValueError(f"{len(prompts)} prompts and {len(references)} lists of references")
        grids = [self.grid(*shape) for shape in reference_shapes(references, self.TEXT_TO_IMAGE)]
        with self._autocast_off():
            per_sample, shared = self._encode(prompts, references, self.grid(height, width), grids)
        return Conditioning(per_sample, shared, height, width)

    @abstractmethod
    def _encode(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[Tensor]],
        image_grid: Grid,
        reference_grids: Sequence[Grid],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return a conditioning's tensors per sample and shared ones, of checked prompts and references."""

    @abstractmethod
    def _reference_tokens(self, images: Tensor) -> Tensor:
        """Map images [B, 3, h, w] in [0, 1] to tokens [B, R, C], fp32; the autoencoder is on the device."""

    def _all_reference_tokens(self, references: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return the tokens [B, R, C] of all references of B samples, each sample's one after the other."""
        if not references[0]:
            return torch.zeros(len(references), 0, self.transformer.config.in_channels, device=self.device)
        # from references per sample to one batch per slot: the i-th images of all samples have one size
        slots = [torch.stack(list(images)) for images in zip(*references, strict=True)]
        with self.placement.vae():
            return torch.cat([self._reference_tokens(slot) for slot in slots], dim=1)

    # Geometry

    def grid(self, height: int, width: int) -> Grid:
        """Return the rows and columns of tokens of an image, given in pixels.

        Raises:
            UserError: The model makes no image of this size.
        """
        return self.grid_of(height, width, self.pipe.vae_scale_factor)

    def n_tokens(self, height: int, width: int) -> int:
        """Return N, the number of tokens of an image of a size in pixels."""
        rows, columns = self.grid(height, width)
        return rows * columns

    # Sampling

    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        """Return initial noise [B, N, C], fp32; sample i depends on generators[i] alone, not on its batch."""
        rows, columns = self.grid(height, width)
        patch = self.PATCH
        shape = (self.latent_channels(self.pipe.vae.config), patch * rows, patch * columns)
        return pack(self._draw(generators, shape), patch)

    def _draw(self, generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
        """Return noise [B, *shape], fp32, sample i from generators[i] alone."""
        samples = [torch.randn(shape, generator=one, device=one.device) for one in generators]
        return torch.stack(samples).to(self.device)  # one transfer, not one a sample

    def sigmas(self, steps: int, n_tokens: int) -> Tensor:
        """Return noise levels [steps + 1], fp32, on the CPU: 1, 1 - 1/steps, ..., 1/steps, shifted; then 0.

        Shift and spacing are those of the pipeline and of the checkpoint's scheduler.

        Args:
            steps: Number of denoising steps.
            n_tokens: Number N of image tokens, references not counted; decides the shift unless mu is given.

        Raises:
            UserError: The shift leaves two levels without a difference.
        """
        mu = self._shift(steps, n_tokens) if self.mu is None else self.mu
        return shifted_levels(self.pipe.scheduler, self._levels(steps), mu)

    def _levels(self, steps: int) -> Any:
        """Return noise levels [steps] before the shift, the last level, 0, left out; by default even ones."""
        return np.linspace(1.0, 1 / steps, steps)

    def _shift(self, steps: int, n_tokens: int) -> float:
        """Return mu as the family's pipeline computes it; by default it grows linearly with N."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        config = self.pipe.scheduler.config
        mu: float = calculate_shift(
            n_tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        )
        return mu

    def velocity(self, x: Tensor, sigma: float | Tensor, conditioning: Conditioning) -> Tensor:
        """Return the predicted v = noise - x0, guidance included, the same in rollouts and in training.

        Args:
            x: Noisy image tokens [B, N, C], fp32.
            sigma: Noise level, a number or fp32 [B].
            conditioning: B samples, from `encode`.

        Returns:
            v [B, N, C], fp32.

        Raises:
            RuntimeError: Gradients are enabled inside `reference()`; its adapter would silently get none.
        """
        self._check_call(x, conditioning)
        # added on the device: a number that is sent there would make the host wait
        level = torch.zeros(len(x), device=x.device) + sigma
        version = x._version
        v = self._velocity(x, level, conditioning)
        check_velocity(self, v, x, version)
        return v

    @abstractmethod
    def _velocity(self, x: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
        """Return v [B, N, C], fp32, at levels [B]; the transformer is called by `_call_transformer` alone."""

    @abstractmethod
    def _check_positions(self, conditioning: Conditioning, n_image: int, n_references: int) -> None:
        """Refuse positions of another bucket, which a transformer would take without complaint.

        Args:
            conditioning: From `encode`.
            n_image: Number N of image tokens.
            n_references: Number R of reference tokens.
        """

    @torch.no_grad()
    def decode(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return images [B, 3, height, width] in [0, 1], fp32, of clean image tokens [B, N, C]."""
        vae = self.pipe.vae
        with self.placement.vae():
            # tokens -> latent pixels -> image pixels
            latents = self._latents(x, self.grid(height, width)).to(vae.dtype)
            with self._autocast():
                pixels = self._decode_latents(latents)
        # fp32 before the affine map: bf16 would round the 256 levels of an image to fewer.
        images = (pixels.float() / 2 + 0.5).clamp(0, 1)
        check_images(self, images, height, width)
        return images

    @abstractmethod
    def _latents(self, x: Tensor, grid: Grid) -> Tensor:
        """Return latent images [B, c, p rows, p columns] as the autoencoder scales them, of tokens."""

    def _decode_latents(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, H, W] in [-1, 1] of latent images."""
        pixels: Tensor = self.pipe.vae.decode(latents, return_dict=False)[0]
        return pixels

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
        with self._as_reference(lora.adapter_off(self.transformer)):
            yield

    @contextmanager
    def start(self) -> Iterator[None]:
        """Have the model with which training began inside the block: with `start_from`'s adapter, or none."""
        if self._start is None:
            with self.reference():
                yield
            return
        with self._as_reference(lora.adapter_exchanged(self.transformer, self._start)):
            yield

    @contextmanager
    def _as_reference(self, other: AbstractContextManager[None]) -> Iterator[None]:
        assert not self._in_reference, "reference() and start() are not reentrant"
        self._in_reference = True
        try:
            with other:
                yield
        finally:
            self._in_reference = False

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return copies of the adapter's tensors by name, for checkpoints and averages."""
        return lora.adapter_tensors(self.transformer)

    def load_adapter_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the adapter in place; UserError, and no change, if names or shapes differ."""
        lora.load_adapter_tensors(self.transformer, tensors, "adapter")

    def save_lora(self, folder: Path, header: Mapping[str, str] = MappingProxyType({})) -> Path:
        """Write the adapter for diffusers' `load_lora_weights` and return the file.

        Args:
            folder: Where to write it.
            header: Further entries of the file's header, see `Provenance.to_header`.
        """
        return lora.save_file(self.transformer, folder, header)

    def load_lora(self, path: Path) -> None:
        """Overwrite the adapter with a saved one of the same base, rank and scale; UserError otherwise."""
        lora.load_file(self.transformer, path)

    def take_lora(self, file: LoraFile) -> None:
        """Make the adapter, which is fresh and of the file's layers and rank, that of a LoRA file."""
        lora.take_file(self.transformer, file)

    def start_from(self, file: LoraFile) -> None:
        """Make the adapter, fresh and of the file's layers, rank and alpha, continue a LoRA file."""
        tensors = file.uniform_tensors()
        lora.load_adapter_tensors(self.transformer, tensors, str(file.path))
        self._start = self.adapter_tensors()  # on the adapter's device

    @contextmanager
    def guided(self, guidance: float) -> Iterator[None]:
        """Draw with another guidance scale inside the block; prompts must be encoded there as well."""
        own = self.guidance
        self.guidance = guidance
        try:
            yield
        finally:
            self.guidance = own

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
        """Return the transformer's output, computed in one way for rollouts and for training.

        A block compiled for use without gradients is fused, and in bf16 rounded, otherwise than one compiled
        for training: the first ratio would not be 1. Compiled rollouts run the graph of training as well.
        """
        with_gradients = torch.is_grad_enabled() or (self._is_compiled and not self._in_reference)
        with torch.set_grad_enabled(with_gradients), self._autocast():
            output: Tensor = self.transformer(**inputs, return_dict=False)[0]
        return output if torch.is_grad_enabled() else output.detach()

    def _autocast(self) -> torch.autocast:
        """Return the one context in which the transformer runs, independent of the caller's.

        No cache of cast weights: a call uses each weight once, so it gains nothing, and inside a caller's
        autocast older versions of torch reuse in training what a rollout cast without gradients.
        """
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False)

    def _autocast_off(self) -> torch.autocast:
        return torch.autocast(self.device.type, enabled=False)

    def _check_call(self, x: Tensor, conditioning: Conditioning) -> None:
        """Refuse what a transformer would take without complaint, or what would lose gradients.

        Raises:
            RuntimeError: Gradients are enabled inside `reference()`; its adapter would silently get none.
        """
        if self._in_reference and torch.is_grad_enabled():
            raise RuntimeError("velocity() inside reference() or start() needs torch.no_grad()")
        n_image = self.n_tokens(conditioning.height, conditioning.width)
        assert x.dtype == torch.float32, f"x is {x.dtype}: rounding it breaks the probability ratio"
        assert len(x) == len(conditioning), f"{len(x)} samples, conditioning for {len(conditioning)}"
        assert x.shape[1] == n_image, f"{x.shape[1]} image tokens, {n_image} expected"
        n_references = conditioning.per_sample["reference_tokens"].shape[1]
        self._check_positions(conditioning, n_image, n_references)
