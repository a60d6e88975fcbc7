"""The FLUX.1 family: FLUX.1-Kontext, FLUX.1-dev with UNO, and the small model of the same classes.

Legend: B samples, N image tokens, R reference tokens, T text tokens, C = 4 x latent channels of a token.

An image is encoded by the VAE (its mode, shifted and scaled), each 2x2 square of latent pixels is one token.
The transformer sees [image tokens, reference tokens] and tells which is which from their position ids
(t, y, x) alone; its answer for the reference tokens is dropped. The ids are shared by the whole batch, so a
batch is one bucket: one size, one list of reference sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from customized_grpo.policies.base import Conditioning
from customized_grpo.policies.offload import EVERYTHING_STAYS, Offload
from customized_grpo.policies.pipeline_policy import (
    PipelinePolicy,
    Precision,
    linear_shift,
    reference_shapes,
)
from customized_grpo.policies.tokens import PATCH, Grid, pack, unpack

if TYPE_CHECKING:
    from diffusers import FluxKontextPipeline

ReferenceIds = Literal["kontext", "uno"]


class Flux1Policy(PipelinePolicy):
    """A `Policy` around a FluxKontextPipeline, whose transformer is called in `velocity` and nowhere else.

    Args:
        pipe: The pipeline; it is moved to its places, frozen and put into eval mode.
        reference_ids: How reference tokens are placed, see `token_ids`.
        guidance: Scale that guidance-distilled models embed; unused by models that do not.
        mu: Shift of the noise levels, sigma' = e^mu / (e^mu + 1 / sigma - 1); None computes it from the
            number of image tokens, as the checkpoint's scheduler says.
        max_text_tokens: Length T to which prompts are padded or cut, always the same, so that a sample does
            not depend on its batch.
        precision: Type of the products in the transformer and in decoding; in and out of `velocity` all is
            fp32, and so is what encodes prompts and references.
        device: Where everything runs.
        offload: Which parts wait on the CPU between their calls.

    Raises:
        UserError: mu is given, but the checkpoint's noise levels are not shifted by it.
    """

    LORA_TARGET = (
        r"(single_)?transformer_blocks\.\d+\."
        r"(attn\.(to_q|to_k|to_v|to_out\.0|add_[qkv]_proj|to_add_out)|proj_out)"
    )

    def __init__(
        self,
        pipe: FluxKontextPipeline,
        *,
        reference_ids: ReferenceIds,
        guidance: float,
        mu: float | None = None,
        max_text_tokens: int,
        precision: Precision,
        device: torch.device | str,
        offload: Offload = EVERYTHING_STAYS,
    ) -> None:
        super().__init__(
            pipe,
            guidance=guidance,
            mu=mu,
            max_text_tokens=max_text_tokens,
            precision=precision,
            device=device,
            offload=offload,
        )
        self.reference_ids = reference_ids

    # Conditioning

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]], height: int, width: int
    ) -> Conditioning:
        """Encode prompts and references of one bucket; call it once per prompt and repeat the result.

        Args:
            prompts: B prompts.
            references: For each prompt the same number, at least one, of fp32 images [3, h, w] in [0, 1]; the
                i-th images of all prompts have one size, a multiple of the side of a token.
            height: Height of the images to generate, in pixels.
            width: Width of the images to generate, in pixels.

        Raises:
            ValueError: The samples are not of one bucket, or a reference is not an fp32 image in [0, 1].
            UserError: A size, of the images or of a reference, is not a multiple of the side of a token.
        """
        if not prompts or len(prompts) != len(references):
            raise ValueError(f"{len(prompts)} prompts and {len(references)} lists of references")
        grids = [self.grid(*shape) for shape in reference_shapes(references)]
        ids = token_ids(self.grid(height, width), grids, self.reference_ids)
        with self._autocast_off():
            with self.placement.text_encoders():
                embeds, pooled, _ = self.pipe.encode_prompt(
                    prompt=list(prompts),
                    prompt_2=None,
                    device=self.device,
                    max_sequence_length=self.max_text_tokens,
                )
            tokens = self._all_reference_tokens(references)
        return Conditioning(
            per_sample={"prompt_embeds": embeds, "pooled": pooled, "reference_tokens": tokens},
            shared={
                "image_ids": ids.to(self.device),
                "text_ids": torch.zeros(self.max_text_tokens, 3, device=self.device),
            },
            height=height,
            width=width,
        )

    def _reference_tokens(self, images: Tensor) -> Tensor:
        """Map images [B, 3, h, w] in [0, 1] to tokens [B, R, C], fp32."""
        from diffusers.pipelines.flux.pipeline_flux_kontext import retrieve_latents

        vae = self.pipe.vae
        pixels = (images * 2 - 1).to(device=self.device, dtype=vae.dtype)
        latents = retrieve_latents(vae.encode(pixels), sample_mode="argmax").float()
        return pack((latents - vae.config.shift_factor) * vae.config.scaling_factor)

    # Sampling

    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        """Return initial noise [B, N, C], fp32: sample i depends on generators[i] alone."""
        rows, columns = self.grid(height, width)
        shape = (self.pipe.vae.config.latent_channels, PATCH * rows, PATCH * columns)
        return pack(self._draw(generators, shape))

    def _shift(self, steps: int, n_tokens: int) -> float:
        return linear_shift(self.pipe.scheduler.config, n_tokens)

    def velocity(self, x: Tensor, sigma: float | Tensor, conditioning: Conditioning) -> Tensor:
        """Return the predicted v = noise - x0, for rollouts and for training alike.

        Args:
            x: Noisy image tokens [B, N, C], fp32.
            sigma: Noise level, a number or fp32 [B].
            conditioning: B samples, from `encode`.

        Returns:
            v [B, N, C], fp32.

        Raises:
            RuntimeError: Gradients are enabled inside `reference()`; its adapter would silently get none.
        """
        n_samples, n_image_tokens, _ = x.shape
        self._check_call(x, conditioning, self.n_tokens(conditioning.height, conditioning.width))
        self._check_ids(conditioning)
        sample, shared = conditioning.per_sample, conditioning.shared
        level = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(n_samples)
        guidance = torch.full_like(level, self.guidance) if self.transformer.config.guidance_embeds else None
        v = self._call_transformer(
            hidden_states=torch.cat([x, sample["reference_tokens"]], dim=1),
            timestep=level,
            guidance=guidance,
            pooled_projections=sample["pooled"],
            encoder_hidden_states=sample["prompt_embeds"],
            txt_ids=shared["text_ids"],
            img_ids=shared["image_ids"],
        )
        return v[:, :n_image_tokens].float()

    @torch.no_grad()
    def decode(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return images [B, 3, height, width] in [0, 1], fp32, of clean image tokens [B, N, C]."""
        vae = self.pipe.vae
        latents = unpack(x, self.grid(height, width)) / vae.config.scaling_factor + vae.config.shift_factor
        with self.placement.vae(), self._autocast():
            pixels = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def _check_ids(self, conditioning: Conditioning) -> None:
        """Refuse ids of another bucket, which the transformer would take without complaint."""
        n_references = conditioning.per_sample["reference_tokens"].shape[1]
        n_image = self.n_tokens(conditioning.height, conditioning.width)
        ids = conditioning.shared["image_ids"]
        assert len(ids) == n_image + n_references, f"{len(ids)} ids for {n_image} + {n_references} tokens"
        assert ids.dtype == torch.float32, "bf16 ids are wrong beyond 256"


def token_ids(image: Grid, references: Sequence[Grid], convention: ReferenceIds) -> Tensor:
    """Return the position ids (t, y, x) of image tokens and then reference tokens, fp32 [N + R, 3].

    The image has t = 0 and starts at the origin. References:

    * "kontext": t = 1, the first one at the origin, as the published model was trained with one. Further ones
      are laid beside or below those before, whichever keeps the sheet squarer (ComfyUI's "offset").
    * "uno": t = 0 on the diagonal: a reference starts at the bottom right corner of everything before it, in
      both directions (pe = "d" of UNO, arXiv 2504.02160).

    Args:
        image: Rows and columns of the image's tokens.
        references: Rows and columns of each reference's tokens.
        convention: "kontext" or "uno".
    """
    parts = [_grid_ids(image, t=0, top=0, left=0)]
    if convention == "uno":
        top, left = image
        for rows, columns in references:
            parts.append(_grid_ids((rows, columns), t=0, top=top, left=left))
            top, left = top + rows, left + columns
        return torch.cat(parts)
    sheet_rows = sheet_columns = 0
    for rows, columns in references:
        beside = sheet_rows + rows > sheet_columns + columns
        top, left = (0, sheet_columns) if beside else (sheet_rows, 0)
        parts.append(_grid_ids((rows, columns), t=1, top=top, left=left))
        sheet_rows, sheet_columns = max(sheet_rows, top + rows), max(sheet_columns, left + columns)
    return torch.cat(parts)


def _grid_ids(grid: Grid, *, t: int, top: int, left: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack([torch.full_like(rows, t), rows + top, columns + left], dim=-1).flatten(0, 1).float()
