"""`hpsv2`: agreement with the prompt and appeal, by Human Preference Score v2.1 (arXiv 2306.09341).

Range: about .2 to .35. The weights are published for open_clip, as a pickle; `convert_hpsv2.py` makes a
folder for transformers of them.
"""

from __future__ import annotations

import torch

from customized_grpo.rewards.clip import ClipTextReward
from customized_grpo.rewards.loading import load_model, load_tokenizer
from customized_grpo.rewards.preprocessing import CLIP_MEAN, CLIP_STD, Preprocess

NAME = "hpsv2"
HOW_TO_CONVERT = (
    "Download HPS_v2.1_compressed.pt from the hub's xswu/HPSv2, run "
    "`python -m customized_grpo.rewards.convert_hpsv2 HPS_v2.1_compressed.pt FOLDER`, and set path: FOLDER."
)


class Hpsv2Reward(ClipTextReward):
    """Cosine similarity of an image, fitted whole into a black square, and its prompt.

    The published code pads where CLIP crops, so that nothing of a wide or tall image is left out.
    """

    name = NAME

    @classmethod
    def load(cls, path: str, *, device: torch.device | str = "cpu") -> Hpsv2Reward:
        """Load from a folder that `convert_hpsv2` wrote; UserError if that fails."""
        from transformers import CLIPModel

        model, folder = load_model(path, None, CLIPModel)
        size = model.config.vision_config.image_size
        preprocess = Preprocess(size, None, CLIP_MEAN, CLIP_STD, letterbox=True)
        return cls(model, load_tokenizer(folder, model), preprocess, device)
