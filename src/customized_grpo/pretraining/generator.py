"""Stages `clean` and `mixture`: text encoders and transformer by flow matching.

Both learn from triples (reference, prompt, target). `clean` sees only good pairs. `mixture` sees the three
kinds of bad pairs that real subject-driven data sets contain, in known shares. The samples of the base are
then a mixture of the same modes, and reinforcement learning can choose between modes:

* copy: the target repeats the reference, background and all;
* drift: the target shows another subject in the prompted scene;
* miss: the caption names something that the image lacks.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, FluxKontextPipeline
from safetensors.torch import load_file, save_file

from customized_grpo.pretraining.common import Log, cosine_with_warmup
from customized_grpo.pretraining.images import render_subjects, scenes_of_subjects
from customized_grpo.seeding import derive_seed
from customized_grpo.toybox import models, world
from customized_grpo.toybox.prompts import to_prompt

VIEWS = 6
ENCODE_SUBJECTS = 8  # whose images are encoded together: as many as fit the processor's caches
GUIDANCE = 2.5  # the embedded guidance, a constant input: the same in pretraining and in use
MISS_CHANCE = 0.5  # that an attribute group of a `miss` caption is drawn anew

ATTRIBUTE_GROUPS = (
    ("hat", "hat_colour"),
    ("prop", "prop_colour", "side"),
    ("floor", "floor_colour"),
    ("sky",),
)


@dataclass(frozen=True)
class Shares:
    """Shares of the three kinds of bad training pairs; the rest is good.

    Attributes:
        copy, drift, miss: See the module's docstring.
    """

    copy: float = 0.0
    drift: float = 0.0
    miss: float = 0.0


CLEAN = Shares()
MIXTURE = Shares(copy=0.20, drift=0.20, miss=0.15)
PAIRS = {"clean": CLEAN, "mixture": MIXTURE}
SAMPLES = {"clean": 160_000, "mixture": 25_600}
PEAK_RATE = {"clean": 1e-3, "mixture": 6e-4}


@dataclass(frozen=True)
class Triple:
    """One training example.

    Attributes:
        reference, target: Indices (subject, view) of the two images.
        prompt: The caption.
    """

    reference: tuple[int, int]
    target: tuple[int, int]
    prompt: str


class LatentWorld:
    """The training images as latents, encoded once and cached beside the weights: both stages read the same.

    Attributes:
        scenes: scenes[subject][view].
        latents: fp16 [subjects, VIEWS, 32, 8, 8], in memory.
    """

    def __init__(self, vae: AutoencoderTiny, subjects: int, seed: int, cache: Path) -> None:
        self.scenes = scenes_of_subjects(seed, subjects, VIEWS)
        file = cache / f"latents-{subjects}-{seed}.safetensors"
        if not file.exists():
            save_file({"latents": self._encode_all(vae, subjects, seed)}, file)
        self.latents = load_file(file)["latents"]

    def _encode_all(self, vae: AutoencoderTiny, subjects: int, seed: int) -> torch.Tensor:
        vae = vae.to(memory_format=torch.channels_last)
        chunks = []
        for start in range(0, subjects, ENCODE_SUBJECTS):
            together = range(start, min(start + ENCODE_SUBJECTS, subjects))
            images, _ = render_subjects(seed, together, self.scenes)
            chunks.append(encode(vae, images))
        return torch.cat(chunks).contiguous().unflatten(0, (subjects, VIEWS))

    def triple(self, rng: random.Random, shares: Shares) -> Triple:
        """Return a random training example, bad in one of the three ways with the chances in `shares`."""
        subject = rng.randrange(len(self.scenes))
        reference_view, target_view = rng.sample(range(VIEWS), 2)
        target = (subject, target_view)
        prompted = self.scenes[subject][target_view]
        kind = rng.random()
        if kind < shares.copy:
            target = (subject, reference_view)
        elif kind < shares.copy + shares.drift:
            other = rng.randrange(len(self.scenes))
            target = (other, target_view)
            prompted = self.scenes[other][target_view]
        elif kind < shares.copy + shares.drift + shares.miss:
            prompted = miscaption(prompted, rng)
        return Triple((subject, reference_view), target, to_prompt(prompted, rng))


def miscaption(scene: world.Scene, rng: random.Random) -> world.Scene:
    """Return a scene of which each attribute group is drawn anew with chance MISS_CHANCE.

    A new draw may repeat the old value, so about one in ten of these scenes has not changed.
    """
    other = world.scene(rng.getrandbits(40), "miss")
    changes = {}
    for group in ATTRIBUTE_GROUPS:
        if rng.random() < MISS_CHANCE:
            changes.update({name: getattr(other, name) for name in group})
    return dataclasses.replace(scene, **changes)


@torch.no_grad()
def encode(vae: AutoencoderTiny, pixels: torch.Tensor) -> torch.Tensor:
    """Return fp16 latents [B, 32, 8, 8] of uint8 images [B, 3, 64, 64], as the pipeline encodes them."""
    images = (pixels.float() / 127.5 - 1).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(images).latents.float()
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    return latents.half().contiguous()


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


def flow_loss(
    pipe: FluxKontextPipeline, latents: LatentWorld, triples: list[Triple], generator: torch.Generator
) -> torch.Tensor:
    """Return the flow-matching loss E |v - (noise - x0)|^2 of a batch, with logit-normal times."""
    count = len(triples)
    target = torch.stack([latents.latents[triple.target] for triple in triples]).float()
    reference = torch.stack([latents.latents[triple.reference] for triple in triples]).float()
    x0 = pipe._pack_latents(target, count, models.LATENT_CHANNELS, 8, 8)
    reference_tokens = pipe._pack_latents(reference, count, models.LATENT_CHANNELS, 8, 8)
    noise = torch.randn(x0.shape, generator=generator)
    sigma = torch.sigmoid(torch.randn(count, generator=generator))
    x = torch.lerp(x0, noise, sigma[:, None, None])
    with torch.autocast("cpu", torch.bfloat16):
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


def ema_with_warmup(decay: float) -> Callable[[Any, Any, Any], None]:
    """Return an averaging function whose decay starts low: random first weights are soon forgotten."""

    @torch.no_grad()
    def update(averages: Any, current: Any, count: Any) -> None:
        now = min(decay, (1 + float(count)) / (10 + float(count)))
        torch._foreach_lerp_(averages, current, 1 - now)

    return update


def train_generator(
    out: Path,
    stage: str = "clean",
    samples: int | None = None,
    subjects: int = 8_000,
    batch_size: int = 64,
    ema_decay: float = 0.998,
    seed: int = 202,
) -> None:
    """Train one stage and save the whole pipeline to `out/base-{stage}`.

    `samples` defaults to what the shipped weights saw. `clean` starts from random weights and holds its
    learning rate, so that it can be stopped at any time; `mixture` starts from `out/base-clean` and anneals
    it. The exponential moving average of the weights is saved.
    """
    torch.manual_seed(seed)
    samples = samples or SAMPLES[stage]
    lr = PEAK_RATE[stage]
    shares = PAIRS[stage]
    pipe = _start(out, stage, seed)
    latents = LatentWorld(pipe.vae, subjects, seed, out)
    modules = trained_modules(pipe).train()
    optimizer = torch.optim.AdamW(modules.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    average = torch.optim.swa_utils.AveragedModel(modules, multi_avg_fn=ema_with_warmup(ema_decay))
    steps = max(1, samples // batch_size)
    log = Log(stage, out)
    for step in range(steps):
        factor = cosine_with_warmup(step, steps, 200) if stage == "mixture" else min(1.0, (step + 1) / 500)
        optimizer.param_groups[0]["lr"] = lr * factor
        rng = random.Random(derive_seed(seed, stage, "triples", step))
        generator = torch.Generator().manual_seed(derive_seed(seed, stage, "noise", step))
        triples = [latents.triple(rng, shares) for _ in range(batch_size)]
        loss = flow_loss(pipe, latents, triples, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(modules)
        log.step(step, steps, loss=loss.item(), grad_norm=norm.item())
        if (step + 1) % 500 == 0 or step + 1 == steps:
            _save(pipe, average.module, out / f"base-{stage}")
    log.finish(samples=samples, subjects=subjects, seed=seed, shares=str(dataclasses.asdict(shares)))


def _start(out: Path, stage: str, seed: int) -> FluxKontextPipeline:
    if stage == "mixture":
        return FluxKontextPipeline.from_pretrained(out / "base-clean", local_files_only=True)
    pipe = models.build_pipeline(seed)
    pipe.vae = AutoencoderTiny.from_pretrained(out / "vae").eval()
    pipe.register_modules(vae=pipe.vae)
    return pipe


def _save(pipe: FluxKontextPipeline, average: torch.nn.Module, folder: Path) -> None:
    """Save the averaged weights as a pipeline without disturbing the ones in training."""
    modules = trained_modules(pipe)
    current = {name: value.clone() for name, value in modules.state_dict().items()}
    modules.load_state_dict(average.state_dict())
    pipe.save_pretrained(folder)
    modules.load_state_dict(current)
