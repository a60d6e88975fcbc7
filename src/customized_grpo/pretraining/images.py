"""Images for the encoders: rendered ones, the same through the autoencoder, and cheap degradations of both.

A reward that has never seen blur or the generator's artefacts is hacked at once, so every encoder is trained
on degraded images as well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from customized_grpo.pixels import to_uint8
from customized_grpo.pretraining.common import render_bytes
from customized_grpo.pretraining.optimisation import autocast
from customized_grpo.pretraining.pairs import PLAIN, SCENES, VIEWS, images_of, scenes_of
from customized_grpo.toybox import world

LATENT_NOISE = 0.3  # upper end of the noise added to latents of unit scale
SUBJECTS_TOGETHER = 4  # whose images are rendered and decoded at a time


class ImagePool:
    """All images of each of `subjects` toys, clean and as the autoencoder returns them.

    Images are found by their place (subject, scene, view, EMBLEM or PLAIN), see `pairs.py`.

    Attributes:
        toys: The subjects.
        scenes: scenes[subject][scene][view].
        clean, decoded: uint8 [subjects, SCENES, VIEWS, 2, 3, 64, 64].
        masks: uint8 [subjects, SCENES, VIEWS, 2, 1, 64, 64], 255 on the subject.
    """

    def __init__(self, vae: AutoencoderTiny, subjects: int, seed: int) -> None:
        self.toys = [world.subject(seed, subject) for subject in range(subjects)]
        self.scenes = [scenes_of(seed, subject) for subject in range(subjects)]
        clean = []
        masks = []
        decoded = []
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, subjects, SUBJECTS_TOGETHER):
            pairs = []
            for index in range(start, min(start + SUBJECTS_TOGETHER, subjects)):
                pairs += images_of(self.toys[index], self.scenes[index])
            images, subject_masks = render_bytes(pairs)
            clean.append(images)
            masks.append(subject_masks)
            decoded.append(to_uint8(noisy_round_trip(vae, images.float() / 255, generator)))
        shape = (subjects, SCENES, VIEWS, 2)
        self.clean = torch.cat(clean).unflatten(0, shape)
        self.masks = torch.cat(masks).unflatten(0, shape)
        self.decoded = torch.cat(decoded).unflatten(0, shape)

    def __len__(self) -> int:
        return len(self.scenes)

    def places(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return random places [count, 4]."""
        sizes = (len(self), SCENES, VIEWS, 2)
        return torch.stack([torch.randint(size, (count,), generator=generator) for size in sizes], 1)

    def pick(self, places: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return degraded images [B, 3, 64, 64] in [0, 1] and their masks [B, 1, 64, 64].

        Args:
            places: Which images, [B, 4].
            generator: Draws which are decoded ones, and the degradations.
        """
        use_decoded = torch.rand(len(places), generator=generator) < 0.5
        index = tuple(places.T)
        chosen = use_decoded[:, None, None, None]
        images = torch.where(chosen, self.decoded[index], self.clean[index])
        return degrade(images.float() / 255, generator), self.masks[index].float() / 255

    def scenes_at(self, places: torch.Tensor) -> list[world.Scene]:
        """Return the scenes of the images at `places` [B, 4]."""
        return [self.scenes[subject][scene][view] for subject, scene, view, _ in places.tolist()]

    def emblems_at(self, places: torch.Tensor) -> list[str]:
        """Return the emblems in the images at `places` [B, 4]."""
        emblems = []
        for subject, _, _, emblem in places.tolist():
            emblems.append(world.PLAIN if emblem == PLAIN else self.toys[subject].emblem)
        return emblems


@torch.no_grad()
def noisy_round_trip(vae: AutoencoderTiny, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return images in [0, 1] after encoding, adding noise of a random level to the latents, and decoding."""
    images = (images * 2 - 1).to(memory_format=torch.channels_last)
    with autocast():
        latents = vae.encode(images).latents.float()
        # the VAE's own latents are wider than those of unit scale by 1 / scaling_factor
        level = torch.rand(len(images), 1, 1, 1, generator=generator) * LATENT_NOISE
        level = level / vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=generator)
        decoded = vae.decode(latents + level * noise).sample
    return (decoded.float() / 2 + 0.5).clamp(0, 1)


def degrade(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return images: a quarter blurred, another quarter noisy, and all a little brighter or darker."""
    count = len(images)
    chance = torch.rand(count, 1, 1, 1, generator=generator)
    low = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    images = torch.where(chance < 0.25, low, images)
    noise = 0.08 * torch.randn(images.shape, generator=generator)
    images = torch.where((chance > 0.25) & (chance < 0.5), images + noise, images)
    gain = 1 + 0.1 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    return (images * gain).clamp(0, 1)


def random_crops(images: torch.Tensor, smallest: float, generator: torch.Generator) -> torch.Tensor:
    """Return a random square of each image, resized to the whole, by one bilinear sampling.

    Args:
        images: [B, 3, H, W].
        smallest: Lower end of the edge of a square, as a share of the image's.
        generator: Draws edges and places.
    """
    count = len(images)
    edge = smallest + (1 - smallest) * torch.rand(count, generator=generator)
    centre = (1 - edge)[:, None] * (torch.rand(count, 2, generator=generator) * 2 - 1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = edge
    theta[:, :, 2] = centre
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="reflection")
