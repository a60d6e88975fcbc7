"""Images for the encoders: rendered ones, the same through the autoencoder, and cheap degradations of both.

A reward that has never seen blur or the generator's artefacts is hacked at once, so every encoder is trained
on degraded images as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from customized_grpo.pixels import to_uint8
from customized_grpo.pretraining.common import render_bytes
from customized_grpo.toybox import world

NEUTRAL = 0.5  # grey that replaces the background of a segmented image
LATENT_NOISE = 0.5  # upper end of the noise added to latents of unit scale
SUBJECTS_TOGETHER = 16  # whose images are rendered and decoded at a time


def scenes_of_subjects(seed: int, subjects: int, views: int) -> list[list[world.Scene]]:
    """Return `views` scenes for each subject of the world `seed`, as scenes[subject][view]."""
    scenes = []
    for subject in range(subjects):
        scenes.append([world.scene(seed, subject, view) for view in range(views)])
    return scenes


def render_subjects(
    seed: int, subjects: Iterable[int], scenes: Sequence[Sequence[world.Scene]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uint8 images [subjects x views, 3, 64, 64] and masks of subjects in all of their scenes."""
    pairs = []
    for index in subjects:
        toy = world.subject(seed, index)
        pairs += [(toy, scene) for scene in scenes[index]]
    return render_bytes(pairs)


class ImagePool:
    """`views` images of each of `subjects` toys, clean and as the autoencoder returns them.

    Attributes:
        clean, decoded: uint8 [subjects, views, 3, 64, 64].
        masks: uint8 [subjects, views, 1, 64, 64], 255 on the subject.
        scenes: scenes[subject][view].
    """

    def __init__(self, vae: AutoencoderTiny, subjects: int, views: int, seed: int) -> None:
        self.scenes = scenes_of_subjects(seed, subjects, views)
        clean = []
        masks = []
        decoded = []
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, subjects, SUBJECTS_TOGETHER):
            together = range(start, min(start + SUBJECTS_TOGETHER, subjects))
            images, subject_masks = render_subjects(seed, together, self.scenes)
            clean.append(images)
            masks.append(subject_masks)
            decoded.append(to_uint8(noisy_round_trip(vae, images.float() / 255, generator)))
        shape = (subjects, views)
        self.clean = torch.cat(clean).unflatten(0, shape)
        self.masks = torch.cat(masks).unflatten(0, shape)
        self.decoded = torch.cat(decoded).unflatten(0, shape)

    def __len__(self) -> int:
        return len(self.scenes)

    def pick(
        self, subjects: torch.Tensor, views: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return degraded images [B, 3, 64, 64] in [0, 1] and their masks [B, 1, 64, 64].

        Args:
            subjects, views: Which image of the pool, [B] each.
            generator: Draws which are decoded ones, and the degradations.
        """
        use_decoded = torch.rand(len(subjects), generator=generator) < 0.5
        images = self.clean[subjects, views]
        images[use_decoded] = self.decoded[subjects[use_decoded], views[use_decoded]]
        masks = self.masks[subjects, views].float() / 255
        return degrade(images.float() / 255, generator), masks

    def scenes_at(self, subjects: torch.Tensor, views: torch.Tensor) -> list[world.Scene]:
        """Return the scenes of the images that `pick` returns for the same indices, both [B]."""
        places = zip(subjects.tolist(), views.tolist(), strict=True)
        return [self.scenes[subject][view] for subject, view in places]


@torch.no_grad()
def noisy_round_trip(vae: AutoencoderTiny, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return images in [0, 1] after encoding, adding noise of a random level to the latents, and decoding."""
    images = (images * 2 - 1).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
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


def segment(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return images whose background is NEUTRAL grey."""
    return images * masks + NEUTRAL * (1 - masks)
