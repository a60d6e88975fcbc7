"""The training images of the generator as latents, encoded once."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from customized_grpo.pretraining.common import render_bytes
from customized_grpo.pretraining.optimisation import autocast
from customized_grpo.pretraining.pairs import SCENES, VIEWS, images_of, scenes_of
from customized_grpo.rewards.features import weights_hash
from customized_grpo.toybox import world

ENCODE_SUBJECTS = 4  # whose images are encoded together: as many as fit the processor's caches


class LatentWorld:
    """All training images as latents, encoded once and kept in a file beside the weights.

    Attributes:
        scenes: scenes[subject][scene][view].
        latents: fp16 [subjects, SCENES, VIEWS, 2, C, 8, 8], in memory; the last but three: EMBLEM or PLAIN.
    """

    def __init__(self, vae: AutoencoderTiny, subjects: int, seed: int, cache: Path) -> None:
        self.scenes = [scenes_of(seed, subject) for subject in range(subjects)]
        # the encoder's weights are in the name: latents of another one are nonsense
        file = cache / f"latents-{subjects}-{seed}-{weights_hash(vae.encoder)[:8]}.safetensors"
        if not file.exists():
            save_file({"latents": self._encode_all(vae, subjects, seed)}, file)
        self.latents = load_file(file)["latents"]

    def _encode_all(self, vae: AutoencoderTiny, subjects: int, seed: int) -> torch.Tensor:
        vae = vae.to(memory_format=torch.channels_last)
        chunks = []
        for start in range(0, subjects, ENCODE_SUBJECTS):
            together = range(start, min(start + ENCODE_SUBJECTS, subjects))
            pairs = []
            for index in together:
                pairs += images_of(world.subject(seed, index), self.scenes[index])
            images, _ = render_bytes(pairs)
            chunks.append(encode(vae, images))
        latents = torch.cat(chunks).contiguous()
        return latents.unflatten(0, (subjects, SCENES, VIEWS, 2))


@torch.no_grad()
def encode(vae: AutoencoderTiny, pixels: torch.Tensor) -> torch.Tensor:
    """Return fp16 latents [B, C, 8, 8] of uint8 images [B, 3, 64, 64], as the pipeline encodes them."""
    images = (pixels.float() / 127.5 - 1).to(memory_format=torch.channels_last)
    with autocast():
        latents = vae.encode(images).latents.float()
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    return latents.half().contiguous()
