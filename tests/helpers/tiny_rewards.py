"""Tiny reward models with random weights, and images for them to score."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from customized_grpo.rewards import ScoringBatch

VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


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


def save_dino_v3(folder: Path, seed: int = 0) -> Path:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        num_register_tokens=4,
        initializer_range=0.3,
    )
    seeded(lambda: DINOv3ViTModel(config), seed).save_pretrained(folder)
    # as published: squeezed, not cropped; no class of it runs without torchvision, so it is written by hand
    preprocessing = {
        "do_center_crop": None,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "image_processor_type": "DINOv3ViTImageProcessorFast",
        "resample": 2,
        "size": {"height": 64, "width": 64},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


def save_siglip(folder: Path, seed: int = 0) -> Path:
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**tower, "vocab_size": 64, "projection_size": 32},
        vision_config={**tower, "image_size": 64, "patch_size": 16},
    )
    seeded(lambda: SiglipModel(config), seed).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def save_dino_v1(folder: Path, seed: int = 0) -> Path:
    """As published: without ViT's pooler, which DINO does not have."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=32,
        initializer_range=0.3,
    )
    seeded(lambda: ViTModel(config, add_pooling_layer=False), seed).save_pretrained(folder)
    return folder


@functools.cache
def qwen_tokenizer() -> Any:
    """The published class of tokenizer, trained on the one text that it is for, without the reward token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    from customized_grpo.rewards.hpsv3_prompt import INSTRUCTION, REQUEST

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION]
    published = Qwen2Tokenizer().backend_tokenizer
    trained = Tokenizer(models.BPE())
    trained.normalizer, trained.pre_tokenizer = published.normalizer, published.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator([INSTRUCTION, REQUEST], trainer)
    model = json.loads(trained.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        extra_special_tokens=special[1:],
    )


def tiny_hpsv3(seed: int = 0) -> tuple[Any, Any]:
    """A body of Qwen2-VL's class, with one row more than the tokenizer has tokens, and a head."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    from customized_grpo.rewards.hpsv3 import reward_head

    tokenizer = qwen_tokenizer()
    start, end, image, video = tokenizer.convert_tokens_to_ids(VISION)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 1,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
            "initializer_range": 0.3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "initializer_range": 0.3,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return seeded(lambda: Qwen2VLForConditionalGeneration(config), seed), seeded(
        lambda: reward_head(32), seed
    )


def save_hpsv3(folder: Path, seed: int = 0) -> Path:
    """Checkpoint and base in one folder; the weights by the names of the published file."""
    from safetensors.torch import save_file

    model, head = tiny_hpsv3(seed)
    model.config.save_pretrained(folder)
    qwen_tokenizer().save_pretrained(folder)
    save_file(published_names(model, head), folder / "HPSv3.safetensors")
    return folder


def published_names(model: Any, head: Any) -> dict[str, Tensor]:
    """Return weights by the names that Qwen2-VL had when HPSv3 was published."""

    def old(name: str) -> str:
        return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")

    body = {old(name): tensor.clone() for name, tensor in model.state_dict().items()}
    return body | {f"rm_head.{name}": tensor.clone() for name, tensor in head.state_dict().items()}


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
