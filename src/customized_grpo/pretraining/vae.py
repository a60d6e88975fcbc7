"""Stage `vae`: the autoencoder."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny

from customized_grpo.pretraining.common import Log, batches, cosine_with_warmup, render_bytes
from customized_grpo.toybox import models, world

IMAGES = 24_000  # different ones; each is cropped at other places later
CROP = 40  # pixels; the network is convolutional, so crops near the toy train it at 40 % of the cost
SUBJECT_WEIGHT = 3.0  # extra weight of a pixel of the toy: a fifth of the image and all of the identity
EDGE_WEIGHT = 0.5
LATENT_NOISE = 0.05  # keeps the decoder smooth around what the generator makes
LATENT_WEIGHT = 1e-3  # of the latents' mean square: the decoder clamps beyond +-3


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the weighted L1 of pixels and of their differences, which keep small hats and eyes sharp.

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


def crops(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return CROP x CROP windows of images [..., H, W], all at one random offset."""
    top = _offset(generator)
    left = _offset(generator)
    return images[..., top : top + CROP, left : left + CROP]


def _offset(generator: torch.Generator) -> int:
    """Return a random offset of a window: the mean of two uniform numbers, so near the centre more often."""
    space = models.IMAGE_SIZE - CROP
    return int(torch.rand(2, generator=generator).mean() * (space + 1))


@torch.no_grad()
def set_latent_scale(vae: AutoencoderTiny, images: torch.Tensor) -> None:
    """Set shift_factor and scaling_factor so that the generator sees latents of mean 0 and variance 1."""
    latents = vae.encode(images).latents
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


def train_vae(
    out: Path, samples: int = 200_000, batch_size: int = 32, lr: float = 1e-3, seed: int = 101
) -> None:
    """Train the autoencoder on `samples` crops and save it to `out/vae`."""
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    count = min(IMAGES, samples)
    pixels, masks = render_bytes([(world.subject(seed, i), world.scene(seed, i)) for i in range(count)])
    with_masks = torch.cat([pixels, masks], 1)  # [count, 4, 64, 64]: both are cropped at once
    vae = models.build_vae().train().to(memory_format=torch.channels_last)
    steps = max(1, samples // batch_size)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    draw = batches(count, batch_size, seed)
    log = Log("vae", out)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * cosine_with_warmup(step, steps, 100)
        generator = torch.Generator().manual_seed(step)
        window = crops(with_masks[draw(step)], generator).float() / 255
        images = (window[:, :3] * 2 - 1).to(memory_format=torch.channels_last)
        mask = window[:, 3:]
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(images).latents.float()
            noise = LATENT_NOISE * torch.randn(latents.shape, generator=generator)
            output = vae.decode(latents + noise).sample.float()
        loss = reconstruction_loss(output, images, mask) + LATENT_WEIGHT * latents.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        mse = F.mse_loss(output.detach(), images).item() / 4  # of pixels in [0, 1]; these are in [-1, 1]
        log.step(step, steps, loss=loss.item(), mse=mse)
    vae.eval()
    set_latent_scale(vae, pixels[:1024].float() / 127.5 - 1)
    for stale_latents in out.glob("latents-*.safetensors"):  # of an earlier autoencoder, see LatentWorld
        stale_latents.unlink()
    vae.save_pretrained(out / "vae")
    log.finish(samples=samples, seed=seed, parameters=sum(p.numel() for p in vae.parameters()))
