"""Stage `encoders`: the models of the rewards and the held-out judges, on disjoint sets of subjects."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from customized_grpo.pretraining.common import Log, cosine_with_warmup
from customized_grpo.pretraining.generator import miscaption
from customized_grpo.pretraining.images import ImagePool, random_crops, segment
from customized_grpo.seeding import derive_seed
from customized_grpo.toybox import judges
from customized_grpo.toybox.prompts import to_prompt
from customized_grpo.toybox.tokenizers import MAX_LENGTH, clip_tokenizer

WIDTH, LAYERS, HEADS, PATCH, SIZE = 96, 4, 4, 8, 64
VIEWS = 4
TEMPERATURE = 0.1
MEAN = STD = (0.5, 0.5, 0.5)
# on CPUs the bf16 backward of fused attention is three times slower than the plain one, at these sizes
ATTENTION = "eager"
LossOf = Callable[[torch.Generator, random.Random], torch.Tensor]
"""Returns the loss of one batch; all its randomness comes from the two generators."""


def build_dino() -> Dinov2Model:
    """Return the tiny identity encoder: 64 px, patches of 8."""
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        mlp_ratio=2,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Dinov2Model(config)


def build_clip() -> CLIPModel:
    """Return the tiny prompt encoder."""
    tokenizer = clip_tokenizer()
    shared = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": HEADS,
        "projection_dim": WIDTH,
    }
    text = {
        **shared,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**shared, "num_hidden_layers": LAYERS, "image_size": SIZE, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def info_nce(a: torch.Tensor, b: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """Return the symmetric InfoNCE loss between rows of a and b [B, D]; row i of a belongs to row i of b."""
    logits = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / temperature
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _optimise(
    module: torch.nn.Module, loss_of: LossOf, log: Log, samples: int, batch_size: int, lr: float, seed: int
) -> None:
    """Train a module with AdamW; a step's batch is a function of the seed, the stage and the step."""
    steps = max(1, samples // batch_size)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.02)
    module.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * cosine_with_warmup(step, steps, 50)
        key = derive_seed(seed, log.stage, step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(torch.Generator().manual_seed(key), random.Random(key))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        log.step(step, steps, loss=loss.item())
    module.eval()


def _normalised(images: torch.Tensor) -> torch.Tensor:
    return images * 2 - 1  # MEAN = STD = 0.5


def train_dino(
    pool: ImagePool, out: Path, samples: int, batch_size: int = 96, seed: int = 301
) -> Dinov2Model:
    """Train the identity reward: two crops of one image agree, each of them segmented half of the time.

    It is self-supervised on single images, so that it leaks pose and background as DINO does; only the
    segmented crops make it look at the subject.
    """
    torch.manual_seed(seed)
    model = build_dino()
    model.set_attn_implementation(ATTENTION)

    def loss_of(generator: torch.Generator, rng: random.Random) -> torch.Tensor:
        subjects = torch.randint(len(pool), (batch_size,), generator=generator)
        views = torch.randint(VIEWS, (batch_size,), generator=generator)
        crops = []
        for _ in range(2):
            images, masks = pool.pick(subjects, views, generator)
            alone = torch.rand(batch_size, 1, 1, 1, generator=generator) < 0.5
            images = torch.where(alone, segment(images, masks), images)
            crops.append(random_crops(images, 0.5, generator))
        features = model(_normalised(torch.cat(crops))).last_hidden_state[:, 0].float()
        return info_nce(*features.chunk(2))

    log = Log("dino", out)
    _optimise(model, loss_of, log, samples, batch_size, 1e-3, seed)
    model.save_pretrained(out / "dino")
    log.finish(samples=samples, seed=seed, parameters=sum(p.numel() for p in model.parameters()))
    return model


def train_clip(pool: ImagePool, out: Path, samples: int, batch_size: int = 96, seed: int = 302) -> CLIPModel:
    """Train the prompt reward: images and captions agree, against other and slightly wrong captions."""
    torch.manual_seed(seed)
    model = build_clip()
    tokenizer = clip_tokenizer()
    model.set_attn_implementation(ATTENTION)

    def loss_of(generator: torch.Generator, rng: random.Random) -> torch.Tensor:
        subjects = torch.randint(len(pool), (batch_size,), generator=generator)
        views = torch.randint(VIEWS, (batch_size,), generator=generator)
        images, _ = pool.pick(subjects, views, generator)
        scenes = pool.scenes_at(subjects, views)
        captions = [to_prompt(scene, rng) for scene in scenes]
        captions += [to_prompt(miscaption(scene, rng), rng) for scene in scenes]
        tokens = tokenizer(captions, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt")
        text = model.get_text_features(**tokens).pooler_output.float()
        image = model.get_image_features(pixel_values=_normalised(images)).pooler_output.float()
        return _caption_loss(F.normalize(image, dim=-1), F.normalize(text, dim=-1), captions)

    log = Log("clip", out)
    _optimise(model, loss_of, log, samples, batch_size, 1e-3, seed)
    model.save_pretrained(out / "clip")
    tokenizer.save_pretrained(out / "clip")
    log.finish(samples=samples, seed=seed, parameters=sum(p.numel() for p in model.parameters()))
    return model


def _caption_loss(image: torch.Tensor, text: torch.Tensor, captions: list[str]) -> torch.Tensor:
    """Return the InfoNCE loss of images [B, D] against 2 B captions; the second half are near misses."""
    count = len(image)
    logits = image @ text.T / TEMPERATURE
    # a miscaption that changed nothing is no negative
    same = torch.tensor([captions[i] == captions[count + i] for i in range(count)])
    logits[:, count:][torch.diag(same)] = float("-inf")
    target = torch.arange(count)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, :count].T, target)) / 2


def train_subject_encoder(
    pool: ImagePool, out: Path, samples: int, batch_size: int = 96, seed: int = 303
) -> judges.SubjectEncoder:
    """Train the held-out identity judge: two views of one subject in different scenes agree."""
    torch.manual_seed(seed)
    model = judges.SubjectEncoder()

    def loss_of(generator: torch.Generator, rng: random.Random) -> torch.Tensor:
        subjects = torch.randperm(len(pool), generator=generator)[:batch_size]
        order = torch.rand(batch_size, VIEWS, generator=generator).argsort(1)
        first, _ = pool.pick(subjects, order[:, 0], generator)
        second, _ = pool.pick(subjects, order[:, 1], generator)
        return info_nce(*model(torch.cat([first, second])).chunk(2))

    log = Log("subject_encoder", out)
    _optimise(model, loss_of, log, samples, batch_size, 2e-3, seed)
    save_file(model.state_dict(), out / "subject_encoder.safetensors")
    log.finish(samples=samples, seed=seed, parameters=sum(p.numel() for p in model.parameters()))
    return model


def train_attribute_classifier(
    pool: ImagePool, out: Path, samples: int, batch_size: int = 96, seed: int = 304
) -> judges.AttributeClassifier:
    """Train the held-out prompt judge by cross-entropy on every attribute a scene has."""
    torch.manual_seed(seed)
    model = judges.AttributeClassifier()

    def loss_of(generator: torch.Generator, rng: random.Random) -> torch.Tensor:
        subjects = torch.randint(len(pool), (batch_size,), generator=generator)
        views = torch.randint(VIEWS, (batch_size,), generator=generator)
        images, _ = pool.pick(subjects, views, generator)
        labels = judges.attribute_labels(pool.scenes_at(subjects, views))
        losses = []
        for name, logits in model(images).items():
            losses.append(F.cross_entropy(logits, labels[name], ignore_index=judges.IGNORE))
        return torch.stack(losses).sum()

    log = Log("attribute_classifier", out)
    _optimise(model, loss_of, log, samples, batch_size, 2e-3, seed)
    save_file(model.state_dict(), out / "attribute_classifier.safetensors")
    log.finish(samples=samples, seed=seed, parameters=sum(p.numel() for p in model.parameters()))
    return model


def train_encoders(out: Path, subjects: int = 5_000, samples: int = 100_000, batch_size: int = 96) -> None:
    """Train both rewards on one set of subjects, and both judges on another to keep them independent."""
    vae = AutoencoderTiny.from_pretrained(out / "vae").eval()
    pool = ImagePool(vae, subjects, VIEWS, seed=401)
    train_dino(pool, out, samples, batch_size)
    train_clip(pool, out, samples, batch_size)
    pool = ImagePool(vae, subjects, VIEWS, seed=402)
    train_attribute_classifier(pool, out, samples, batch_size)
    train_subject_encoder(pool, out, samples, batch_size)
