"""Tiny reward models with random weights, and pictures for them to score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from customized_grpo.rewards import ScoringBatch


def seeded(build: Callable[[], Any], seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


def tiny_dino(seed: int = 0) -> Any:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        initializer_range=0.3,
    )
    return seeded(lambda: Dinov2Model(config), seed)


def tiny_clip(seed: int = 0) -> tuple[Any, Any]:
    from transformers import CLIPConfig, CLIPModel

    from customized_grpo.toybox.tokenizers import clip_tokenizer

    tokenizer = clip_tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 16,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={**tower, "image_size": 64, "patch_size": 16},
        projection_dim=24,
        initializer_factor=8.0,
    )
    return seeded(lambda: CLIPModel(config), seed), tokenizer


def save_dino(folder: Path, seed: int = 0) -> Path:
    from transformers import BitImageProcessorPil

    tiny_dino(seed).save_pretrained(folder)
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    BitImageProcessorPil(
        size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}, **imagenet
    ).save_pretrained(folder)
    return folder


def save_clip(folder: Path, seed: int = 0) -> Path:
    from transformers import CLIPImageProcessorPil

    model, tokenizer = tiny_clip(seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(
        folder
    )
    return folder


def random_image(seed: int, height: int = 64, width: int = 64) -> Tensor:
    """Smooth, unlike noise, so that a resize keeps something to look at."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").squeeze(0)


def disc(height: int = 64, width: int = 64) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (((y - height / 2) ** 2 + (x - width / 2) ** 2) < (height / 3) ** 2).float()[None]


def make_batch(n: int = 3, height: int = 64, width: int = 64, references: int = 1) -> ScoringBatch:
    return ScoringBatch(
        images=torch.stack([random_image(i, height, width) for i in range(n)]),
        prompts=[f"a {word} with a red hat" for word in ("fox", "robot", "bird", "snail")[:n]],
        references=[[random_image(100 + 10 * i + j) for j in range(references)] for i in range(n)],
        reference_masks=[[disc()] * references for _ in range(n)],
        image_masks=torch.stack([disc(height, width)] * n),
        meta=[{"id": f"row-{i}"} for i in range(n)],
    )
