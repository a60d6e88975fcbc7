"""The FLUX.1 family: FLUX.1-Kontext, FLUX.1-dev with UNO, and the small model of the same classes.

Legend: B samples, N image tokens, R reference tokens, T text tokens, C = 4 x latent channels of a token.

An image is encoded by the VAE (its mode, shifted and scaled), each 2x2 square of latent pixels is one token.
The transformer gets [image tokens, reference tokens] and knows which is which from their position ids
(t, y, x) alone; its output for the reference tokens is dropped. The ids are shared by the whole batch, so a
batch is one bucket: one size, one list of reference sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from customized_grpo.policies.last_block import cut_last_block, keeping, recomputed
from customized_grpo.policies.options import Flux1Options, ReferenceIds
from customized_grpo.policies.policy import Policy
from customized_grpo.policies.settings import PolicySettings
from customized_grpo.policies.tokens import Grid, pack, unpack
from customized_grpo.text_limits import TextLimit, token_counter

if TYPE_CHECKING:
    from diffusers import FluxKontextPipeline

    from customized_grpo.policies.architecture import CallShape
    from customized_grpo.policies.conditioning import Conditioning


class Flux1Policy(Policy):
    """A policy around a FluxKontextPipeline.

    `guidance` is the scale that guidance-distilled models embed, unused by models that do not; mu is computed
    from the number of image tokens unless it is given.
    """

    TEXT_TO_IMAGE = True
    LORA_TARGET = (
        r"(single_)?transformer_blocks\.\d+\."
        r"(attn\.(to_q|to_k|to_v|to_out\.0|add_[qkv]_proj|to_add_out)|proj_out)"
    )

    def __init__(self, pipe: FluxKontextPipeline, settings: PolicySettings, options: Flux1Options) -> None:
        super().__init__(pipe, settings, options)
        self.reference_ids = options.reference_ids
        self.has_cut_block = options.last_block == "image"
        if self.has_cut_block:
            cut_last_block(self.transformer)

    # Conditioning

    def text_limits(self) -> list[TextLimit]:
        """Return the limits of T5 and of CLIP, which gives the pooled summary of the prompt."""
        pipe = self.pipe
        return [
            TextLimit("the generator's T5", self.max_text_tokens, token_counter(pipe.tokenizer_2)),
            TextLimit("the generator's CLIP", pipe.tokenizer_max_length, token_counter(pipe.tokenizer)),
        ]

    def _encode(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[Tensor]],
        image_grid: Grid,
        reference_grids: Sequence[Grid],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        ids = token_ids(image_grid, reference_grids, self.reference_ids)
        with self.placement.text_encoders():
            embeds, pooled, _ = self.pipe.encode_prompt(
                prompt=list(prompts),
                prompt_2=None,
                device=self.device,
                max_sequence_length=self.max_text_tokens,
            )
        tokens = self._all_reference_tokens(references)
        per_sample = {"prompt_embeds": embeds, "pooled": pooled, "reference_tokens": tokens}
        shared = {
            "image_ids": ids.to(self.device),
            # all text is at the origin; only image and reference tokens have places
            "text_ids": torch.zeros(self.max_text_tokens, 3, device=self.device),
        }
        return per_sample, shared

    def _reference_tokens(self, images: Tensor) -> Tensor:
        """Map images [B, 3, h, w] in [0, 1] to tokens [B, R, C], fp32."""
        from diffusers.pipelines.flux.pipeline_flux_kontext import retrieve_latents

        vae = self.pipe.vae
        # [0, 1] -> [-1, 1], the range of diffusers' autoencoders
        pixels = (images * 2 - 1).to(device=self.device, dtype=vae.dtype)
        # argmax: the mode of the encoder's Gaussian, so that a reference is the same tokens each time
        latents = retrieve_latents(vae.encode(pixels), sample_mode="argmax").float()
        return pack((latents - vae.config.shift_factor) * vae.config.scaling_factor)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass, of the last block for the tokens that it kept."""
        super().set_gradient_checkpointing(enabled)
        if enabled and self.has_cut_block:
            self.transformer.enable_gradient_checkpointing(recomputed)

    # Sampling

    def _velocity(self, x: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
        sample = conditioning.per_sample
        shared = conditioning.shared
        guidance = torch.full_like(level, self.guidance) if self.transformer.config.guidance_embeds else None
        with keeping(self.transformer, x.shape[1]):
            v = self._call_transformer(
                # the image first: the slice below takes its tokens, and the order is that of `image_ids`
                hidden_states=torch.cat([x, sample["reference_tokens"]], dim=1),
                timestep=level,
                guidance=guidance,
                pooled_projections=sample["pooled"],
                encoder_hidden_states=sample["prompt_embeds"],
                txt_ids=shared["text_ids"],
                img_ids=shared["image_ids"],
            )
        return v[:, : x.shape[1]].float()  # the rest is its output for the reference tokens

    def _check_positions(self, conditioning: Conditioning, n_image: int, n_references: int) -> None:
        ids = conditioning.shared["image_ids"]
        assert len(ids) == n_image + n_references, f"{len(ids)} ids for {n_image} + {n_references} tokens"
        assert ids.dtype == torch.float32, "bf16 ids are wrong beyond 256"

    def _latents(self, x: Tensor, grid: Grid) -> Tensor:
        config = self.pipe.vae.config
        # the inverse of `_reference_tokens`
        return unpack(x, grid) / config.scaling_factor + config.shift_factor

    # Sizes

    @classmethod
    def transformer_inputs(cls, shape: CallShape) -> dict[str, Any]:
        """Return the arguments that `_velocity` gives, of any content."""
        config = shape.config
        return {
            "hidden_states": shape.hidden_states(),
            "timestep": torch.empty(shape.batch),
            "guidance": torch.empty(shape.batch) if config.guidance_embeds else None,
            "pooled_projections": torch.empty(shape.batch, config.pooled_projection_dim, dtype=shape.dtype),
            "encoder_hidden_states": shape.text(),
            "txt_ids": torch.empty(shape.text_tokens, 3),
            "img_ids": torch.empty(shape.n_tokens, 3),
        }


def token_ids(image: Grid, references: Sequence[Grid], convention: ReferenceIds) -> Tensor:
    """Return the position ids (t, y, x) of image tokens and then reference tokens, fp32 [N + R, 3].

    The image has t = 0 and starts at the origin. References:

    * "kontext": t = 1, the first one at the origin; the published model was trained with one. Further ones go
      beside or below the others, so that the sheet stays close to a square (ComfyUI's "offset").
    * "uno": t = 0 on the diagonal: a reference starts at the bottom right corner of everything before it, in
      both directions (pe = "d" of UNO, arXiv 2504.02160).

    Args:
        image: Rows and columns of the image's tokens.
        references: Rows and columns of each reference's tokens.
        convention: "kontext" or "uno".
    """
    # All in tokens, not pixels: a token is 2 x 2 latent pixels, 16 x 16 pixels of the image.
    parts = [_grid_ids(image, t=0, top=0, left=0)]
    if convention == "uno":
        # UNO goes down the diagonal: each reference begins where the one before it ends in both directions.
        top, left = image
        for rows, columns in references:
            parts.append(_grid_ids((rows, columns), t=0, top=top, left=left))
            top += rows
            left += columns
        return torch.cat(parts)
    # Kontext lays the references out on one sheet, in a frame of their own.
    sheet_rows = 0
    sheet_columns = 0
    for rows, columns in references:
        # Beside where growing downwards would make the sheet longer; a tie goes below.
        beside = sheet_rows + rows > sheet_columns + columns
        top, left = (0, sheet_columns) if beside else (sheet_rows, 0)
        parts.append(_grid_ids((rows, columns), t=1, top=top, left=left))
        sheet_rows = max(sheet_rows, top + rows)
        sheet_columns = max(sheet_columns, left + columns)
    return torch.cat(parts)


def _grid_ids(grid: Grid, *, t: int, top: int, left: int) -> Tensor:
    # (t, y, x) of every token, row by row, as `pack` orders them
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack([torch.full_like(rows, t), rows + top, columns + left], dim=-1).flatten(0, 1).float()
