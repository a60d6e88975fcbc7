"""`dino`: subject identity by DINOv2, the identity reward of Customized-GRPO ("DINO-Seg").

Range on photos with facebook/dinov2-base: about .5 to .9. `segment: reference` halves the premium that a
literal copy of the reference earns over an honest other image of the subject.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from customized_grpo.rewards.loading import load_model, load_preprocess
from customized_grpo.rewards.preprocessing import Preprocess
from customized_grpo.rewards.similarity import Encoder, ReferenceSimilarity, Segment

if TYPE_CHECKING:
    from transformers import Dinov2Model, ViTModel

NAME = "dino"
SEGMENTED_NAME = "dino_seg"
DEFAULT_PATH = "facebook/dinov2-base"


class DinoReward(ReferenceSimilarity):
    """Cosine of DINOv2's class tokens, see `ReferenceSimilarity`.

    Args:
        model: The encoder.
        preprocess: Its preprocessing.
        segment: Which images are cut out with their masks.
        device: Where it runs.
        name: Name of the reward; "dino_seg" says, with the paper, that the reference is cut out.
    """

    def __init__(
        self,
        model: Dinov2Model,
        preprocess: Preprocess,
        segment: Segment = "reference",
        device: torch.device | str = "cpu",
        name: str = NAME,
    ) -> None:
        super().__init__(name, Encoder(model, preprocess, class_token), segment=segment, device=device)

    @classmethod
    def load(
        cls,
        path: str,
        *,
        segment: Segment = "reference",
        device: torch.device | str = "cpu",
        name: str = NAME,
    ) -> DinoReward:
        """Load from a folder, a hub id or "toybox"; UserError if that fails."""
        from transformers import Dinov2Model

        model, folder = load_model(path, NAME, Dinov2Model)
        return cls(model, load_preprocess(folder), segment, device, name)


def class_token(model: Dinov2Model | ViTModel, pixel_values: Tensor) -> Tensor:
    """Return the class token after the last norm, [B, D]."""
    return model(pixel_values=pixel_values).last_hidden_state[:, 0]
