"""Stage `vae`: the autoencoder, whose encoder is computed and whose decoder is trained.

The encoder is linear: the principal components of 8 x 8 pixel blocks, the best linear code there is, put into
the convolutions of AutoencoderTiny. It costs a minute, and it keeps the order of scales that images have:
large areas are large numbers, and fine details small ones, so that denoising decides them late. The decoder
is a network, since it sees the neighbours of a block and knows toys.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from customized_grpo.pretraining.common import batches, render_bytes
from customized_grpo.pretraining.optimisation import Recipe, autocast, optimise
from customized_grpo.toybox import models, world

IMAGES = 12_000  # different ones; each is cropped at other places later
FITTED = 4_000  # of these, which the components are computed from
CROP = 40  # pixels; the network is convolutional, so crops near the toy train it at 40 % of the cost
SUBJECT_WEIGHT = 3.0  # extra weight of a pixel of the toy: a third of the image and all of the identity
EDGE_WEIGHT = 0.5
LATENT_NOISE = 0.03  # of latents of unit scale: keeps the decoder smooth around what the generator makes
BLOCK = 8
CODE_SCALE = 0.3  # of the components: the decoder of AutoencoderTiny bends what is beyond +-2
RECIPE = Recipe(samples=200_000, batch_size=32, rate=2e-3, seed=101, betas=(0.9, 0.99), weight_decay=1e-3)


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the weighted L1 of pixels and of their differences, which keep emblems and eyes sharp.

    Args:
        output, target: Images [B, 3, H, W].
        masks: Subject masks [B, 1, H, W] in [0, 1].
    """
    error = output - target
    weight = 1 + SUBJECT_WEIGHT * masks
    across = error.diff(dim=-1)
    down = error.diff(dim=-2)
    edges = (across.abs() * weight[..., 1:]).mean() + (down.abs() * weight[..., 1:, :]).mean()
    return (error.abs() * weight).mean() + EDGE_WEIGHT * edges


def principal_components(
    images: torch.Tensor, masks: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean [192] and the first principal components [192, count] of 8 x 8 pixel blocks.

    Args:
        images: [B, 3, H, W] in [0, 1].
        masks: Subject masks [B, 1, H, W] in [0, 1]; blocks of the subject weigh 1 + SUBJECT_WEIGHT times.
        count: Number of components.
    """
    blocks = _blocks(images)
    weights = 1 + SUBJECT_WEIGHT * _blocks(masks).mean(1, keepdim=True)
    mean = (blocks * weights).sum(0) / weights.sum()
    centred = blocks - mean
    _, vectors = torch.linalg.eigh((centred * weights).T @ centred)
    return mean, vectors.flip(1)[:, :count]


def _blocks(images: torch.Tensor) -> torch.Tensor:
    """Return the 8 x 8 blocks of images [B, C, H, W] as rows [B H W / 64, C 64], in the order (C, y, x)."""
    channels = images.shape[1]
    folded = F.unfold(images, BLOCK, stride=BLOCK)  # [B, C 64, blocks]
    return folded.transpose(1, 2).reshape(-1, channels * BLOCK * BLOCK)


@torch.no_grad()
def set_encoder(vae: AutoencoderTiny, mean: torch.Tensor, components: torch.Tensor) -> None:
    """Put a linear code of 8 x 8 blocks into the convolutions of an encoder without residual blocks.

    Each of the first two strided convolutions moves 2 x 2 pixels into channels (3 -> 12 -> 48), the third
    maps 2 x 2 of those, a whole block, to the components, and the last one takes the mean away.
    """
    first, half, quarter, eighth, last = vae.encoder.layers
    for layer in (first, half, quarter, eighth, last):
        layer.weight.zero_()
    for channel in range(3):
        first.weight[channel, channel, 1, 1] = 1
    first.bias.zero_()
    _move_into_channels(half, 3)
    _move_into_channels(quarter, 12)
    count = components.shape[1]
    # channel of the quarter's output: ((c 2 + y1) 2 + x1) 4 + y2 2 + x2, where y = 4 y3 + 2 y2 + y1
    table = components.T.reshape(count, 3, 2, 2, 2, 2, 2, 2)  # count, c, y3, y2, y1, x3, x2, x1
    table = table.permute(0, 1, 4, 7, 3, 6, 2, 5)  # count, c, y1, x1, y2, x2, y3, x3
    eighth.weight[:count, :48, 1:, 1:] = table.reshape(count, 48, 2, 2)
    for index in range(count):
        last.weight[index, index, 1, 1] = 1
    last.bias.copy_(-mean @ components)


def _move_into_channels(layer: torch.nn.Conv2d, channels: int) -> None:
    """Let a 3 x 3 convolution of stride 2 move its 2 x 2 pixels (taps 1 and 2) into channels."""
    for channel in range(channels):
        for y in range(2):
            for x in range(2):
                layer.weight[channel * 4 + y * 2 + x, channel, 1 + y, 1 + x] = 1


def fit_encoder(pixels: torch.Tensor, masks: torch.Tensor) -> AutoencoderTiny:
    """Return an autoencoder whose encoder is computed from uint8 images and masks, with random decoder.

    The generator sees latents of mean 0 and variance 1, by the scaling factor.
    """
    vae = models.build_vae()
    images = pixels.float() / 255
    mean, components = principal_components(images, masks.float() / 255, models.LATENT_CHANNELS)
    set_encoder(vae, mean, CODE_SCALE * components)
    vae.encoder.requires_grad_(False)
    with torch.no_grad():
        latents = vae.encode(images[:1024] * 2 - 1).latents
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
    return vae


def crops(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return CROP x CROP windows of images [..., H, W], all at one random offset of whole blocks."""
    top = _offset(generator)
    left = _offset(generator)
    return images[..., top : top + CROP, left : left + CROP]


def _offset(generator: torch.Generator) -> int:
    """Return a random offset of a window: the mean of two uniform numbers, so near the centre more often."""
    places = (models.IMAGE_SIZE - CROP) // BLOCK + 1
    return BLOCK * int(torch.rand(2, generator=generator).mean() * places)


def train_vae(out: Path, samples: int | None = None, batch_size: int | None = None) -> None:
    """Fit the encoder, train the decoder on crops, and save both to `out/vae`."""
    recipe = dataclasses.replace(
        RECIPE, samples=samples or RECIPE.samples, batch_size=batch_size or RECIPE.batch_size
    )
    torch.manual_seed(recipe.seed)
    out.mkdir(parents=True, exist_ok=True)
    count = min(IMAGES, recipe.samples)
    pixels, masks = training_images(count)
    vae = fit_encoder(pixels[:FITTED], masks[:FITTED]).to(memory_format=torch.channels_last)
    level = LATENT_NOISE / vae.config.scaling_factor
    with_masks = torch.cat([pixels, masks], 1)  # [count, 4, 64, 64]: both are cropped at once
    draw = batches(count, recipe.batch_size, recipe.seed)

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(step)
        window = crops(with_masks[draw(step)], generator).float() / 255
        images = (window[:, :3] * 2 - 1).to(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = vae.encode(images).latents
        noise = level * torch.randn(latents.shape, generator=generator)
        with autocast():
            output = vae.decode(latents + noise).sample.float()
        loss = reconstruction_loss(output, images, window[:, 3:])
        mse = F.mse_loss(output.detach(), images).item() / 4  # of pixels in [0, 1]; these are in [-1, 1]
        return loss, {"mse": mse}

    optimise("vae", vae.decoder, loss_of, recipe, out)
    vae.save_pretrained(out / "vae")


def training_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uint8 images [count, 3, 64, 64] and masks of `count` toys, each in a scene of its own."""
    seed = RECIPE.seed
    return render_bytes([(world.subject(seed, i), world.scene(seed, i)) for i in range(count)])
