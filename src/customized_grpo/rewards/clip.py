"""`clip_t` and `clip_i`: agreement of an image with its prompt, and with its references, by CLIP.

Range on photos: .25 to .33 for text, .75 to .9 for images, both with ViT-B/32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.features import FeatureCache, weights_hash
from customized_grpo.rewards.loading import load_model, load_preprocess, load_tokenizer
from customized_grpo.rewards.preprocessing import Preprocess
from customized_grpo.rewards.similarity import Encoder, ReferenceSimilarity, Segment
from customized_grpo.text_limits import TextLimit, token_counter

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

TEXT_NAME = "clip_t"
IMAGE_NAME = "clip_i"
TOYBOX_NAME = "clip"
DEFAULT_PATH = "openai/clip-vit-base-patch32"
CACHED_PROMPTS = 16384


class ClipTextReward:
    """Cosine similarity in [-1, 1] of an image and its prompt, not scaled.

    Args:
        model: CLIP.
        tokenizer: Its tokenizer; prompts are cut at the model's text length.
        preprocess: Its image preprocessing.
        device: Where it runs.
    """

    kind: Literal["prompt"] = "prompt"
    name = TEXT_NAME

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        preprocess: Preprocess,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.model = model.requires_grad_(False).eval().to(self.device)
        self.tokenizer = tokenizer
        self.encoder = Encoder(model, preprocess, image_features)
        self._cache = FeatureCache(CACHED_PROMPTS)

    @classmethod
    def load(cls, path: str, *, device: torch.device | str = "cpu") -> ClipTextReward:
        """Load from a folder, a hub id or "toybox"; UserError if that fails."""
        from transformers import CLIPModel

        model, folder = load_model(path, TOYBOX_NAME, CLIPModel)
        return cls(model, load_tokenizer(folder, model), load_preprocess(folder), device)

    def score(self, batch: ScoringBatch) -> Tensor:
        """Return cosines [B], fp32, on the CPU."""
        with torch.inference_mode():
            images = self.encoder(batch.images.to(self.device))
            # The samples of a group have one prompt, which is encoded once.
            keys = [prompt.encode() for prompt in batch.prompts]
            texts = self._cache.get(keys, lambda rows: self._encode([batch.prompts[i] for i in rows]))
            cosines = (images * texts).sum(1).cpu()
        return cosines.clone()  # a tensor made in inference mode could not take part in a loss

    def fingerprint(self) -> dict[str, Any]:
        """Return name, weights, preprocessing and a sample of the tokenizer's work."""
        return {
            "name": self.name,
            "kind": self.kind,
            "model": type(self.model).__name__,
            "weights": weights_hash(self.model),
            "preprocess": self.encoder.preprocess.as_json(),
            "dtype": "fp32",
            "tokens": self.tokenizer("a photo of a red hat").input_ids,
        }

    def text_limit(self) -> TextLimit:
        """Return how much of a prompt the model reads."""
        return TextLimit(self.name, self._max_tokens, token_counter(self.tokenizer))

    @property
    def _max_tokens(self) -> int:
        length: int = self.model.config.text_config.max_position_embeddings
        return length

    def _encode(self, prompts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            prompts,
            # to the full length in every batch: a prompt's features do not depend on the prompts beside it
            padding="max_length",
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        ).to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            output = self.model.get_text_features(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            )
        return functional.normalize(output.pooler_output.float(), dim=-1)


class ClipImageReward(ReferenceSimilarity):
    """Cosine of CLIP's image embeddings, see `ReferenceSimilarity`; DreamBench's CLIP-I with segment none.

    Args:
        model: CLIP.
        preprocess: Its image preprocessing.
        segment: Which images are cut out with their masks.
        device: Where it runs.
    """

    def __init__(
        self,
        model: CLIPModel,
        preprocess: Preprocess,
        segment: Segment = "reference",
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            IMAGE_NAME, Encoder(model, preprocess, image_features), segment=segment, device=device
        )

    @classmethod
    def load(
        cls, path: str, *, segment: Segment = "reference", device: torch.device | str = "cpu"
    ) -> ClipImageReward:
        """Load from a folder, a hub id or "toybox"; UserError if that fails."""
        from transformers import CLIPModel

        model, folder = load_model(path, TOYBOX_NAME, CLIPModel)
        return cls(model, load_preprocess(folder), segment, device)


def image_features(model: CLIPModel, pixel_values: Tensor) -> Tensor:
    """Return the projected image embedding, [B, D]; transformers 5 calls it `pooler_output`."""
    return model.get_image_features(pixel_values=pixel_values).pooler_output
