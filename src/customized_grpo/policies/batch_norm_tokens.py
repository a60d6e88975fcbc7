"""Tokens of FLUX.2's autoencoder, which FLUX.3 has as well: 2 x 2 latent pixels, normalised by a BatchNorm.

Legend: B samples, N image tokens, R reference tokens, C = 4 x latent channels of a token.

The VAE encodes an image (its mode), each 2x2 square of latent pixels is one token, and tokens are normalised
by the running statistics of the VAE's BatchNorm, channel by channel; there is no scaling factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from customized_grpo.policies.policy import Policy
from customized_grpo.policies.tokens import Grid, pack, unpack


class BatchNormTokens(Policy):
    """A policy around a pipeline with an AutoencoderKLFlux2."""

    def _reference_tokens(self, images: Tensor) -> Tensor:
        """Map images [B, 3, h, w] in [0, 1] to tokens [B, R, C], fp32."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import retrieve_latents

        vae = self.pipe.vae
        pixels = (images * 2 - 1).to(device=self.device, dtype=vae.dtype)
        # The mode, so that a reference has the same tokens each time.
        latents = retrieve_latents(vae.encode(pixels), sample_mode="argmax").float()
        mean, deviation = self._token_statistics()
        # Scaled after packing: the statistics are of a token's channels, 4 for each of the latent's.
        return (pack(latents) - mean) / deviation

    def _token_statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation [C], fp32, of a token's channels, from the VAE's BatchNorm."""
        vae = self.pipe.vae
        # The running statistics are a fixed scaling here: the BatchNorm itself is never called.
        variance = vae.bn.running_var.float() + vae.config.batch_norm_eps
        return vae.bn.running_mean.float(), variance.sqrt()

    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        """Return initial noise [B, N, C], fp32: sample i depends on generators[i] alone."""
        shape = (self.transformer.config.in_channels, *self.grid(height, width))
        # Drawn as the pipeline draws it, [B, C, rows, columns], then rows x columns become tokens.
        return self._draw(generators, shape).flatten(2).transpose(1, 2).contiguous()

    def _latents(self, x: Tensor, grid: Grid) -> Tensor:
        mean, deviation = self._token_statistics()
        return unpack(x * deviation + mean, grid)
