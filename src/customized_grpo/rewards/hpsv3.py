"""`hpsv3`: agreement with the prompt and appeal, by Human Preference Score v3 (arXiv 2508.03789).

The prompt reward of Customized-GRPO. Qwen2-VL-7B reads image and prompt; a small head turns its state at
the token `<|Reward|>` into (mu, sigma), and the score is mu: about 4 to 11 on good images, without bounds.

The published package needs an old transformers, so the checkpoint is loaded here. As there,
* the image takes about 256 tokens, 448 x 448 pixels if it is square, and keeps its proportions;
* positions count the tokens one by one: that forward hands embeddings to the body without token ids, which
  leaves out Qwen2-VL's three-dimensional positions, and the checkpoint was trained so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from customized_grpo.errors import UserError
from customized_grpo.fields import Text
from customized_grpo.libraries import quiet
from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.features import weights_hash
from customized_grpo.rewards.hpsv3_prompt import IMAGE_TOKEN, REWARD_TOKEN, question
from customized_grpo.rewards.loading import checkpoint_file, load_part
from customized_grpo.rewards.options import RewardOptions
from customized_grpo.rewards.preprocessing import CLIP_MEAN, CLIP_STD, Preprocess
from customized_grpo.weights.models import check_finite, explained
from customized_grpo.weights.tokenizers import load_tokenizer as checked_tokenizer

NAME = "hpsv3"
DEFAULT_PATH = "MizzenAI/HPSv3"
FILE_NAME = "HPSv3.safetensors"
DEFAULT_BASE = "Qwen/Qwen2-VL-7B-Instruct"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
IMAGE_TOKENS = 256
BATCH = 8  # images read together, each with its 800 tokens


class Hpsv3Options(RewardOptions):
    """The options of `hpsv3`."""

    base: Text = DEFAULT_BASE
    """Folder or hub id of the body's configuration and tokenizer."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the body; bf16 is how it was published, and half the memory."""


class Hpsv3Reward:
    """Mean of the preference score that HPSv3 predicts for an image and its prompt.

    Args:
        model: Qwen2VLModel, the body.
        head: Maps states [B, D] to (mu, sigma) [B, 2]; it always computes in fp32.
        tokenizer: The body's, with `<|Reward|>`.
        device: Where it runs.
    """

    kind: Literal["prompt"] = "prompt"
    name = NAME

    def __init__(
        self, model: Any, head: nn.Module, tokenizer: Any, device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.model = model.requires_grad_(False).eval().to(self.device)
        self.head = head.requires_grad_(False).eval().to(self.device, torch.float32)
        self.tokenizer = tokenizer
        self.preprocess = Preprocess(None, None, CLIP_MEAN, CLIP_STD)

    @classmethod
    def load(
        cls, path: str | None, options: Hpsv3Options, *, device: torch.device | str = "cpu"
    ) -> Hpsv3Reward:
        """Load the published checkpoint.

        Args:
            path: Folder or hub id with HPSv3.safetensors; None means the authors'.
            options: Where configuration and tokenizer are, and the type of the body.
            device: Where it runs.

        Raises:
            UserError: A part is missing, or the weights do not fit.
        """
        tokenizer = load_tokenizer(options.base)
        weights = checkpoint_file(path or DEFAULT_PATH, FILE_NAME)
        model, head = load_weights(weights, options.base, DTYPES[options.dtype])
        reward_token = tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        rows = model.get_input_embeddings().num_embeddings
        if reward_token >= rows:
            raise UserError(
                f"{weights}: {rows} tokens, but {options.base!r} gives {REWARD_TOKEN} "
                f"the number {reward_token}"
            )
        return cls(model, head, tokenizer, device)

    def score(self, batch: ScoringBatch) -> Tensor:
        """Return mu [B], fp32, on the CPU.

        Raises:
            UserError: A prompt holds one of the model's control tokens.
        """
        # A control token in a prompt would be read as one, and could end it.
        for row, prompt in enumerate(batch.prompts):
            control = [token for token in self.tokenizer.get_added_vocab() if token in prompt]
            if control:
                raise UserError(
                    f"reward {NAME!r}: the prompt of {batch.label(row)} holds {control[0]!r}, "
                    "which is a control token of the model"
                )
        parts = range(0, len(batch), BATCH)
        with torch.inference_mode():
            scores = torch.cat(
                [self._score(batch.images[i : i + BATCH], batch.prompts[i : i + BATCH]) for i in parts]
            )
        return scores.clone()  # a tensor made in inference mode could not take part in a loss

    def fingerprint(self) -> dict[str, Any]:
        """Return name, weights, preprocessing and a sample of the tokenizer's work."""
        return {
            "name": self.name,
            "kind": self.kind,
            "model": type(self.model).__name__,
            "weights": [weights_hash(self.model), weights_hash(self.head)],
            "preprocess": self.preprocess.as_json(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "tokens": self.tokenizer(question("a photo of a red hat", 1)).input_ids,
        }

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        patches, grid = self._patches(images.to(self.device))
        # patches -> tokens: the model merges squares of patches before the text sees them
        merged = int(grid[0].prod()) // self.model.config.vision_config.spatial_merge_size**2
        rows = [
            self.tokenizer(question(prompt, merged), return_tensors="pt").input_ids[0] for prompt in prompts
        ]
        lengths = torch.tensor([len(row) for row in rows])
        # Padded on the right; the last token of a row is found by its length.
        ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        places = torch.arange(ids.shape[1])
        with torch.autocast(self.device.type, enabled=False):
            states = self.model(
                input_ids=ids.to(self.device),
                attention_mask=(places < lengths[:, None]).long().to(self.device),
                position_ids=places.expand(3, *ids.shape).to(self.device),
                pixel_values=patches.to(self.model.dtype),
                image_grid_thw=grid,
                use_cache=False,
            ).last_hidden_state
            # the reward token is the last of each row
            mu_sigma = self.head(states[torch.arange(len(rows)), lengths - 1].float())
        return mu_sigma[:, 0].cpu()

    def _patches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches [B * gh * gw, 3 * frames * patch²] and the grid [B, 3] of (1, gh, gw)."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        vision = self.model.config.vision_config
        patch = vision.patch_size
        merge = vision.spatial_merge_size
        frames = vision.temporal_patch_size
        pixels = IMAGE_TOKENS * (patch * merge) ** 2
        height, width = smart_resize(
            *images.shape[-2:], factor=patch * merge, min_pixels=pixels, max_pixels=pixels
        )
        resized = replace(self.preprocess, size=(height, width))(images)
        gh, gw = height // patch, width // patch
        tiles = resized.reshape(len(images), 3, gh // merge, merge, patch, gw // merge, merge, patch)
        tiles = tiles.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [B, rows, columns, merge, merge, 3, patch, patch]
        # an image is a film of `frames` equal frames
        tiles = tiles.unsqueeze(6).expand(*tiles.shape[:6], frames, patch, patch)
        grid = torch.tensor([[1, gh, gw]], device=images.device).expand(len(images), 3)
        return tiles.reshape(len(images) * gh * gw, -1), grid


def load_tokenizer(base: str) -> Any:
    """Load the body's tokenizer and give it the reward token, which comes last, as in training."""
    from transformers import AutoTokenizer

    tokenizer = checked_tokenizer(AutoTokenizer, base, what=f"{base!r}: the tokenizer")
    tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        raise UserError(f"{base!r}: the tokenizer has no {IMAGE_TOKEN}: it is not Qwen2-VL's")
    return tokenizer


def load_weights(file: Path, base: str, dtype: torch.dtype) -> tuple[Any, nn.Sequential]:
    """Return the body (Qwen2VLModel, in `dtype`) and the head (fp32) of a checkpoint.

    Raises:
        UserError: It is no safetensors file, or weights are missing, unknown or of other sizes.
    """
    from safetensors.torch import load_file
    from transformers import Qwen2VLConfig, Qwen2VLModel

    with explained(f"{file}: cannot be read"):
        state = load_file(file)
    body = {
        body_name(name): tensor
        for name, tensor in state.items()
        # lm_head predicts words, which a reward does not need
        if not name.startswith(("rm_head.", "lm_head."))
    }
    head = {
        name.removeprefix("rm_head."): tensor for name, tensor in state.items() if name.startswith("rm_head.")
    }
    config = load_part(base, Qwen2VLConfig, "config.json")
    embedding = body.get("language_model.embed_tokens.weight")
    if embedding is not None:
        config.text_config.vocab_size = len(embedding)  # cut to the tokens in use when the reward token came
    reward = reward_head(config.text_config.hidden_size)
    try:
        with quiet(["transformers"]):
            model, report = Qwen2VLModel.from_pretrained(
                None, config=config, state_dict=body, dtype=dtype, output_loading_info=True
            )
        reward.load_state_dict(head)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{file}: does not fit {base!r}: {error}") from error
    # transformers gives missing weights random values, and goes on
    wrong = sorted(report["missing_keys"] | report["unexpected_keys"])
    if wrong:
        raise UserError(f"{file}: {len(wrong)} weights are missing or unknown: {', '.join(wrong[:3])}")
    check_finite(model, str(file))
    check_finite(reward, str(file))
    return model, reward


def reward_head(width: int) -> nn.Sequential:
    """Return the head for states [B, width], with random weights."""
    return nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )


def body_name(name: str) -> str:
    """Return the name in today's Qwen2VLModel of a weight of the checkpoint, which has an older layout."""
    name = name.removeprefix("model.")
    return name if name.startswith(("visual.", "language_model.")) else f"language_model.{name}"
