"""`pickscore`: agreement with the prompt and appeal, by a CLIP trained on people's picks (arXiv 2305.01569).

Range: about 18 to 24. A prompt reward whose scale is CLIP's temperature: scores differ by tenths.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.clip import ClipTextReward
from customized_grpo.rewards.loading import load_model, load_preprocess, load_tokenizer

NAME = "pickscore"
DEFAULT_PATH = "yuvalkirstain/PickScore_v1"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""Where its authors take tokenizer and preprocessing from; a local folder must hold its own."""


class PickScoreReward(ClipTextReward):
    """Cosine similarity of an image and its prompt times exp(logit scale), about 100.

    Args:
        model: CLIP, fine-tuned on picks.
        tokenizer: Its tokenizer; prompts are cut at the model's text length.
        preprocess: Its image preprocessing.
        device: Where it runs.
    """

    name = NAME

    @classmethod
    def load(cls, path: str, *, device: torch.device | str = "cpu") -> PickScoreReward:
        """Load from a folder, a hub id or "toybox"; UserError if that fails."""
        from transformers import CLIPModel

        model, source = load_model(path, NAME, CLIPModel)
        # On the hub its repository holds the weights alone.
        processor = source if Path(source).expanduser().is_dir() else PROCESSOR
        return cls(model, load_tokenizer(processor, model), load_preprocess(processor), device)

    def score(self, batch: ScoringBatch) -> Tensor:
        """Return scaled cosines [B], fp32, on the CPU."""
        return self.model.logit_scale.exp().cpu() * super().score(batch)
