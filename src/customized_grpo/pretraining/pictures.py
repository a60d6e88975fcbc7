"""Pictures for the encoders: rendered ones, what the autoencoder makes of them, and cheap degradations.

A reward that has never seen blur or the generator's artefacts is hacked at once, so every encoder is trained
on degraded pictures too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from customized_grpo.pixels import to_uint8
from customized_grpo.pretraining.common import render_bytes
from customized_grpo.toybox import world

NEUTRAL = 0.5  # grey that replaces the background of a segmented picture
LATENT_NOISE = 0.5  # upper end of the noise added to latents of unit scale


class PicturePool:
    """`views` pictures of each of `subjects` toys, clean and as the autoencoder returns them.

    Attributes:
        clean, decoded: uint8 [subjects, views, 3, 64, 64].
        masks: uint8 [subjects, views, 1, 64, 64], 255 on the subject.
        scenes: scenes[subject][view].
    """

    def __init__(self, vae: AutoencoderTiny, subjects: int, views: int, seed: int) -> None:
        self.scenes = [[world.scene(seed, i, v) for v in range(views)] for i in range(subjects)]
        clean, masks, decoded = [], [], []
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, subjects, 16):
            ids = range(start, min(start + 16, subjects))
            pictures, mask = render_bytes([(world.subject(seed, i), s) for i in ids for s in self.scenes[i]])
            clean.append(pictures)
            masks.append(mask)
            decoded.append(to_uint8(noisy_round_trip(vae, pictures.float() / 255, generator)))
        shape = (subjects, views)
        self.clean = torch.cat(clean).unflatten(0, shape)
        self.masks = torch.cat(masks).unflatten(0, shape)
        self.decoded = torch.cat(decoded).unflatten(0, shape)

    def __len__(self) -> int:
        return len(self.scenes)

    def pick(
        self, subjects: torch.Tensor, views: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return degraded pictures [B, 3, 64, 64] in [0, 1] and their masks [B, 1, 64, 64]."""
        use_decoded = torch.rand(len(subjects), generator=generator) < 0.5
        picked = self.clean[subjects, views]
        picked[use_decoded] = self.decoded[subjects[use_decoded], views[use_decoded]]
        masks = self.masks[subjects, views].float() / 255
        return degrade(picked.float() / 255, generator), masks


@torch.no_grad()
def noisy_round_trip(vae: AutoencoderTiny, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Encode images in [0, 1], add noise of a random level to the latents, decode."""
    images = (images * 2 - 1).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(images).latents.float()
        level = (
            torch.rand(len(images), 1, 1, 1, generator=generator) * LATENT_NOISE / vae.config.scaling_factor
        )
        decoded = vae.decode(latents + level * torch.randn(latents.shape, generator=generator)).sample
    return (decoded.float() / 2 + 0.5).clamp(0, 1)


def degrade(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur a quarter of the pictures, add noise to another quarter, shift the brightness of all a little."""
    count = len(images)
    chance = torch.rand(count, 1, 1, 1, generator=generator)
    low = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    images = torch.where(chance < 0.25, low, images)
    noise = 0.08 * torch.randn(images.shape, generator=generator)
    images = torch.where((chance > 0.25) & (chance < 0.5), images + noise, images)
    gain = 1 + 0.1 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    return (images * gain).clamp(0, 1)


def random_crops(images: torch.Tensor, smallest: float, generator: torch.Generator) -> torch.Tensor:
    """Crop squares of a random edge in [smallest, 1] and resize them back, all in one bilinear sampling."""
    count = len(images)
    edge = smallest + (1 - smallest) * torch.rand(count, generator=generator)
    centre = (1 - edge)[:, None] * (torch.rand(count, 2, generator=generator) * 2 - 1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = edge
    theta[:, :, 2] = centre
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="reflection")


def segment(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Replace the background by NEUTRAL grey."""
    return images * masks + NEUTRAL * (1 - masks)
