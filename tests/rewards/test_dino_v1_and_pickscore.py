from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import BitImageProcessorPil, CLIPImageProcessorPil

import tiny_rewards as tiny
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards import build_reward, needs_masks
from customized_grpo.rewards.dino_v1 import DinoV1Reward
from customized_grpo.rewards.pickscore import PickScoreReward


def pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", [(64, 64), (300, 400)])
def test_dino_v1_is_the_cosine_of_class_tokens_of_cropped_images(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    from transformers import ViTModel

    batch, folder = tiny.make_batch(3, *size), tiny.save_dino_v1(tmp_path)
    scores = DinoV1Reward.load(str(folder), segment="none").score(batch)
    processor = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    model = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    images = [pil(image) for image in [*batch.images, *(photos[0] for photos in batch.references)]]
    with torch.no_grad():
        tokens = model(**processor(images, return_tensors="pt")).last_hidden_state[:, 0]
    assert torch.allclose(scores, functional.cosine_similarity(tokens[:3], tokens[3:]), atol=2e-6)
    assert scores.std() > 1e-3


def test_toybox_has_no_dino_v1() -> None:
    with pytest.raises(UserError, match="ToyBox has no ViTModel"):
        build_reward(RewardConfig(name="dino_v1", path="toybox"))


def test_dino_seg_is_dino_with_the_reference_cut_out(tmp_path: Path) -> None:
    batch, folder = tiny.make_batch(3), str(tiny.save_dino(tmp_path))
    alias = build_reward(RewardConfig(name="dino_seg", path=folder))
    cut_out = build_reward(RewardConfig(name="dino", path=folder, segment="reference"))
    assert torch.equal(alias.score(batch), cut_out.score(batch)) and alias.name == "dino_seg"
    with pytest.raises(UserError, match="always cuts out the reference") as caught:
        build_reward(RewardConfig(name="dino_seg", path=folder, segment="none"))
    assert caught.value.hint == "Use dino with segment: none."


def test_pickscore_is_clips_scaled_logit(tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    batch, folder = tiny.make_batch(3, 96, 70), tiny.save_clip(tmp_path)
    scores = PickScoreReward.load(str(folder)).score(batch)
    tokens = CLIPTokenizer.from_pretrained(folder)(batch.prompts, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(
        [pil(image) for image in batch.images], return_tensors="pt"
    )
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(folder).eval()(**pixels, **tokens).logits_per_image.diagonal()
    assert torch.allclose(scores, expected, atol=3e-5)  # about 14 times a cosine
    assert scores.std() > 1e-2


def test_pickscore_of_the_hub_takes_its_processor_from_where_its_authors_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from customized_grpo.rewards import pickscore

    model, _ = tiny.tiny_clip()
    asked: list[str] = []

    def recorded(path: str, _: Any) -> Any:
        asked.append(path)
        raise UserError("enough")

    monkeypatch.setattr(pickscore, "load_model", lambda path, *_: (model, path))
    monkeypatch.setattr(pickscore, "load_tokenizer", recorded)
    with pytest.raises(UserError, match="enough"):
        PickScoreReward.load("yuvalkirstain/PickScore_v1")
    assert asked == ["laion/CLIP-ViT-H-14-laion2B-s32B-b79K"]


@pytest.mark.parametrize(
    ("name", "segment", "needed"),
    [
        ("dino", "reference", True),
        ("dino_seg", "reference", True),
        ("dino_v1", "both", True),
        ("clip_i", "none", False),
        ("lite", "reference", True),
        ("clip_t", "reference", False),
        ("hpsv3", "both", False),
        ("my_rewards:colourful", "reference", False),
    ],
)
def test_the_registry_knows_who_needs_masks(name: str, segment: Any, needed: bool) -> None:
    assert needs_masks(RewardConfig(name=name, segment=segment)) is needed
