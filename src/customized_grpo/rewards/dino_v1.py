"""`dino_v1`: subject identity by the first DINO, the metric that DreamBooth's benchmark calls "DINO".

Range on photos with facebook/dino-vits16: about .3 to .9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from customized_grpo.rewards.dino import class_token
from customized_grpo.rewards.loading import load_model
from customized_grpo.rewards.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from customized_grpo.rewards.similarity import Encoder, ReferenceSimilarity, Segment

if TYPE_CHECKING:
    from transformers import ViTModel

NAME = "dino_v1"
DEFAULT_PATH = "facebook/dino-vits16"
PREPROCESS = Preprocess(256, (224, 224), IMAGENET_MEAN, IMAGENET_STD)
"""The benchmark's: the checkpoint's own file squeezes images to 224 x 224 instead."""


class DinoV1Reward(ReferenceSimilarity):
    """Cosine of DINO's class tokens, see `ReferenceSimilarity`; DreamBench's metric with segment none.

    Args:
        model: The encoder, for images of 224 x 224 pixels.
        segment: Which images are cut out with their masks.
        device: Where it runs.
    """

    def __init__(
        self, model: ViTModel, segment: Segment = "reference", device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(NAME, Encoder(model, PREPROCESS, class_token), segment=segment, device=device)

    @classmethod
    def load(
        cls, path: str, *, segment: Segment = "reference", device: torch.device | str = "cpu"
    ) -> DinoV1Reward:
        """Load from a folder or a hub id; UserError if that fails."""
        from transformers import ViTModel

        # the class token after the last norm is the feature; DINO never trained ViT's pooler
        model, _ = load_model(path, None, ViTModel, {"add_pooling_layer": False})
        return cls(model, segment, device)
