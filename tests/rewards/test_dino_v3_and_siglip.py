"""Identity by DINOv3 and SigLIP: the scores of an independent computation with the models of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny_rewards as tiny
from customized_grpo.errors import UserError
from customized_grpo.pixels import to_pil
from customized_grpo.rewards import ScoringBatch
from customized_grpo.rewards.dino_v3 import DinoV3Reward
from customized_grpo.rewards.siglip import SiglipReward

Features = Callable[[Image.Image], Tensor]


def expected(batch: ScoringBatch, features: Features) -> Tensor:
    """Cosines of each image with its only reference."""
    rows = []
    for image, references in zip(batch.images, batch.references, strict=True):
        pair = [features(to_pil(photo)) for photo in (image, references[0])]
        rows.append(torch.nn.functional.cosine_similarity(*pair, dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("size", [(64, 64), (50, 130)])
def test_siglip_equals_its_own_processor_and_model(tmp_path: Path, size: tuple[int, int]) -> None:
    from transformers import SiglipImageProcessorPil, SiglipModel

    folder = tiny.save_siglip(tmp_path)
    processor = SiglipImageProcessorPil.from_pretrained(folder)
    model = SiglipModel.from_pretrained(folder).eval()

    def features(image: Image.Image) -> Tensor:
        with torch.no_grad():
            return model.vision_model(**processor([image], return_tensors="pt")).pooler_output[0]

    batch = tiny.make_batch(3, *size)
    scores = SiglipReward.load(str(folder), segment="none").score(batch)
    torch.testing.assert_close(scores, expected(batch, features), atol=2e-6, rtol=0)
    assert scores.std() > 1e-3  # the comparison can fail


@pytest.mark.parametrize("size", [(64, 64), (50, 130)])
def test_dino_v3_equals_its_model_on_a_squeezed_image(tmp_path: Path, size: tuple[int, int]) -> None:
    from transformers import DINOv3ViTModel

    folder = tiny.save_dino_v3(tmp_path)
    model = DINOv3ViTModel.from_pretrained(folder).eval()
    mean = np.array([0.485, 0.456, 0.406])
    deviation = np.array([0.229, 0.224, 0.225])

    def features(image: Image.Image) -> Tensor:
        pixels = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR)) / 255
        values = torch.from_numpy((pixels - mean) / deviation).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            return model(pixel_values=values).last_hidden_state[0, 0]

    batch = tiny.make_batch(3, *size)
    scores = DinoV3Reward.load(str(folder), segment="none").score(batch)
    torch.testing.assert_close(scores, expected(batch, features), atol=5e-6, rtol=0)
    assert scores.std() > 1e-3


def test_a_checkpoint_of_another_class_is_refused(tmp_path: Path) -> None:
    folder = str(tiny.save_dino(tmp_path))
    for reward in (DinoV3Reward, SiglipReward):
        with pytest.raises(UserError, match="it is a 'dinov2' model"):
            reward.load(folder)  # type: ignore[attr-defined]
