"""`dino_v3`: subject identity by DINOv3 (arXiv 2508.10104), whose weights are gated on the hub.

The published preprocessing squeezes an image to the size of the model; here Pillow resizes its 8 bits, as for
every encoder, where the library's own needs torchvision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from customized_grpo.rewards.dino import class_token
from customized_grpo.rewards.loading import load_model, load_preprocess
from customized_grpo.rewards.preprocessing import Preprocess
from customized_grpo.rewards.similarity import Encoder, ReferenceSimilarity, Segment

if TYPE_CHECKING:
    from transformers import DINOv3ViTModel

NAME = "dino_v3"
DEFAULT_PATH = "facebook/dinov3-vitb16-pretrain-lvd1689m"


class DinoV3Reward(ReferenceSimilarity):
    """Cosine of DINOv3's class tokens, see `ReferenceSimilarity`.

    Args:
        model: The encoder.
        preprocess: Its preprocessing.
        segment: Which images are cut out with their masks.
        device: Where it runs.
    """

    def __init__(
        self,
        model: DINOv3ViTModel,
        preprocess: Preprocess,
        segment: Segment = "reference",
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(NAME, Encoder(model, preprocess, class_token), segment=segment, device=device)

    @classmethod
    def load(
        cls, path: str, *, segment: Segment = "reference", device: torch.device | str = "cpu"
    ) -> DinoV3Reward:
        """Load from a folder or a hub id; UserError if that fails."""
        from transformers import DINOv3ViTModel

        model, folder = load_model(path, None, DINOv3ViTModel)
        return cls(model, load_preprocess(folder), segment, device)
