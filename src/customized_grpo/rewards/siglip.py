"""`siglip`: subject identity by the image encoder of SigLIP or SigLIP 2 (arXiv 2502.14786).

For checkpoints of one image size, such as google/siglip2-base-patch16-256; those of any size (naflex) are of
another class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from customized_grpo.rewards.loading import load_model, load_preprocess
from customized_grpo.rewards.preprocessing import Preprocess
from customized_grpo.rewards.similarity import Encoder, ReferenceSimilarity, Segment

if TYPE_CHECKING:
    from transformers import SiglipModel

NAME = "siglip"
DEFAULT_PATH = "google/siglip2-base-patch16-256"


class SiglipReward(ReferenceSimilarity):
    """Cosine of SigLIP's image embeddings, see `ReferenceSimilarity`.

    Args:
        model: The model; its text encoder is not used.
        preprocess: Its preprocessing.
        segment: Which images are cut out with their masks.
        device: Where it runs.
    """

    def __init__(
        self,
        model: SiglipModel,
        preprocess: Preprocess,
        segment: Segment = "reference",
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(NAME, Encoder(model, preprocess, image_embedding), segment=segment, device=device)

    @classmethod
    def load(
        cls, path: str, *, segment: Segment = "reference", device: torch.device | str = "cpu"
    ) -> SiglipReward:
        """Load from a folder or a hub id; UserError if that fails."""
        from transformers import SiglipModel

        model, folder = load_model(path, None, SiglipModel)
        return cls(model, load_preprocess(folder), segment, device)


def image_embedding(model: SiglipModel, pixel_values: Tensor) -> Tensor:
    """Return the pooled image embedding [B, D]."""
    return model.get_image_features(pixel_values=pixel_values).pooler_output
