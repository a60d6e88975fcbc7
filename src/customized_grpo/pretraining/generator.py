"""Stages `clean` and `mixture`: text encoders and transformer by flow matching.

`clean` sees only good pairs, and shows how well the models can draw. `mixture` goes on from it with pairs
that are bad in known shares, see `pairs.py`; its samples are what reinforcement learning starts from.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, FluxKontextPipeline

from customized_grpo.pretraining.latents import LatentWorld
from customized_grpo.pretraining.optimisation import Recipe, autocast, optimise
from customized_grpo.pretraining.pairs import Shares, Triple, draw_triple
from customized_grpo.seeding import derive_seed
from customized_grpo.toybox import models

GUIDANCE = 2.5  # the embedded guidance, a constant input: the same in pretraining and in use
SUBJECTS = 4_000
SEED = 202
PAIRS = {"clean": Shares(), "mixture": Shares(copied_scene=0.4, plain=0.45)}
RECIPES = {
    # at a constant rate, so that it can be stopped or prolonged; what is kept is the average of the weights
    "clean": Recipe(
        samples=303_040, batch_size=64, rate=1e-3, seed=SEED, warmup=500, constant=True, ema_decay=0.999
    ),
    "mixture": Recipe(samples=128_000, batch_size=64, rate=6e-4, seed=SEED, warmup=200, ema_decay=0.999),
}


def text_inputs(pipe: FluxKontextPipeline, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the encoded prompts, with gradients but otherwise exactly as `pipe.encode_prompt` does.

    Returns:
        Token embeddings [B, TEXT_TOKENS, TEXT_WIDTH] and pooled embeddings [B, TEXT_WIDTH].
    """
    clip_ids = pipe.tokenizer(
        prompts,
        padding="max_length",
        max_length=pipe.tokenizer_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    t5_ids = pipe.tokenizer_2(
        prompts, padding="max_length", max_length=models.TEXT_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return pipe.text_encoder_2(t5_ids)[0], pipe.text_encoder(clip_ids).pooler_output


def image_ids(pipe: FluxKontextPipeline) -> torch.Tensor:
    """Return positions (t, h, w) of 16 target tokens (t = 0) and 16 reference tokens (t = 1), [32, 3]."""
    edge = models.IMAGE_SIZE // 16
    target = pipe._prepare_latent_image_ids(1, edge, edge, torch.device("cpu"), torch.float32)
    reference = target.clone()
    reference[:, 0] = 1
    return torch.cat([target, reference])


def training_sigmas(count: int, generator: torch.Generator) -> torch.Tensor:
    """Return noise levels [B]: logit-normal, shifted as the sampler's are."""
    sigma = torch.sigmoid(torch.randn(count, generator=generator))
    return models.SHIFT * sigma / (1 + (models.SHIFT - 1) * sigma)


def flow_loss(
    pipe: FluxKontextPipeline, latents: LatentWorld, triples: list[Triple], generator: torch.Generator
) -> torch.Tensor:
    """Return the flow-matching loss E |v - (noise - x0)|^2 of a batch."""
    count = len(triples)
    target = torch.stack([latents.latents[triple.target] for triple in triples]).float()
    reference = torch.stack([latents.latents[triple.reference] for triple in triples]).float()
    x0 = pipe._pack_latents(target, count, models.LATENT_CHANNELS, 8, 8)
    reference_tokens = pipe._pack_latents(reference, count, models.LATENT_CHANNELS, 8, 8)
    noise = torch.randn(x0.shape, generator=generator)
    sigma = training_sigmas(count, generator)
    x = torch.lerp(x0, noise, sigma[:, None, None])
    with autocast():
        embeds, pooled = text_inputs(pipe, [triple.prompt for triple in triples])
        output = pipe.transformer(
            hidden_states=torch.cat([x, reference_tokens], 1),
            timestep=sigma,
            guidance=torch.full((count,), GUIDANCE),
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(models.TEXT_TOKENS, 3),
            img_ids=image_ids(pipe),
            return_dict=False,
        )[0][:, : x.shape[1]]
    return F.mse_loss(output.float(), noise - x0)


def trained_modules(pipe: FluxKontextPipeline) -> torch.nn.ModuleDict:
    """Return the parts that flow matching trains: the transformer and the text encoders."""
    names = ("transformer", "text_encoder", "text_encoder_2")
    return torch.nn.ModuleDict({name: getattr(pipe, name) for name in names})


def train_generator(
    out: Path,
    stage: str = "clean",
    samples: int | None = None,
    batch_size: int | None = None,
    subjects: int = SUBJECTS,
) -> None:
    """Train one stage and save the whole pipeline, with averaged weights, to `out/base-{stage}`.

    `samples` and `batch_size` default to what the shipped weights saw. `clean` starts from random weights,
    `mixture` from `out/base-clean`.
    """
    recipe = RECIPES[stage]
    recipe = dataclasses.replace(
        recipe, samples=samples or recipe.samples, batch_size=batch_size or recipe.batch_size
    )
    shares = PAIRS[stage]
    pipe = _start(out, stage)
    latents = LatentWorld(pipe.vae, subjects, SEED, out)

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = random.Random(derive_seed(SEED, stage, "triples", step))
        generator = torch.Generator().manual_seed(derive_seed(SEED, stage, "noise", step))
        triples = [draw_triple(latents.scenes, rng, shares) for _ in range(recipe.batch_size)]
        return flow_loss(pipe, latents, triples, generator), {}

    optimise(stage, trained_modules(pipe), loss_of, recipe, out)
    pipe.save_pretrained(out / f"base-{stage}")


def _start(out: Path, stage: str) -> FluxKontextPipeline:
    if stage == "mixture":
        return FluxKontextPipeline.from_pretrained(out / "base-clean", local_files_only=True)
    pipe = models.build_pipeline(SEED)
    pipe.vae = AutoencoderTiny.from_pretrained(out / "vae").eval()
    pipe.register_modules(vae=pipe.vae)
    return pipe
