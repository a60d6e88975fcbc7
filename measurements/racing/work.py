"""The work that all contestants of a race do, and the files that it needs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from customized_grpo.embedded import load_embedded
from customized_grpo.toybox.export import export_manifest

LORA_TARGETS = [
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
]  # fmt: skip
"""Layers with a LoRA in the programs that build on diffusers."""

CLIP_LENGTH = 77  # tokens


@dataclass(frozen=True)
class Work:
    """One iteration: sampling, scoring and one optimizer step.

    Attributes:
        samples: Images of an iteration.
        group_size: Images of a prompt.
        batch_size: Samples in a call of the model, in sampling and in training.
        steps: Denoising steps of a sample.
        trained: Steps of a sample that are trained.
        checkpointing: Whether activations are computed a second time in the backward pass.
        lora_rank: Rank of the adapter.
        lora_on_proj_out: Whether output layers of single blocks have one as well, as in the released loop.
        size: Height and width of images and references, in pixels.
        text_tokens: Tokens of a prompt; the base was trained with 18.
        guidance: The guidance that the model is told.
        precision: Of the model's products, bf16 or fp32.
        settings: Further settings of our recipe, section.key=value.
    """

    samples: int = 96
    group_size: int = 12
    batch_size: int = 96
    steps: int = 8
    trained: int = 3
    checkpointing: bool = False
    lora_rank: int = 32
    lora_on_proj_out: bool = False
    size: int = 64
    text_tokens: int = 18
    guidance: float = 2.5
    precision: str = "bf16"
    settings: Sequence[str] = ()

    @property
    def prompts(self) -> int:
        """Return the number of groups."""
        return self.samples // self.group_size

    @property
    def batches(self) -> int:
        """Return the number of calls of the model for one step of all samples."""
        return self.samples // self.batch_size

    @property
    def lora_target(self) -> str:
        """Return the layers with a LoRA as a regular expression of whole names."""
        layers = [f".*{re.escape(name)}" for name in LORA_TARGETS]
        return "|".join([*layers, r"single_.*proj_out"] if self.lora_on_proj_out else layers)

    def to_json(self) -> str:
        """Return the work as a contestant's process takes it."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Work:
        """Return the work that `to_json` wrote."""
        return Work(**json.loads(text))


def write_files(folder: Path, subjects: int) -> None:
    """Write the base model and the prompts in the layouts that the contestants read.

    Args:
        folder: A new folder. It gets `model` (diffusers' layout), `toybox` (a manifest of ours), and `rows`
            with `train.jsonl` (Flow-Factory), `train_metadata.jsonl` (flow_grpo) and `images`.
        subjects: Number of subjects; each has two prompts.
    """
    pipeline = load_embedded("toybox").to(torch.float32)
    # flow_grpo pads to CLIP's length, whatever the tokenizer says; so all get an encoder that has it.
    pipeline.tokenizer.model_max_length = CLIP_LENGTH
    changes = {"max_position_embeddings": CLIP_LENGTH}
    pipeline.text_encoder = CLIPTextModel(
        CLIPTextConfig(**(pipeline.text_encoder.config.to_dict() | changes))
    )
    pipeline.save_pretrained(folder / "model")
    manifest = export_manifest(folder / "toybox", subjects, seed=0)
    rows = folder / "rows"
    shutil.copytree(folder / "toybox" / "images", rows / "images")
    examples = [json.loads(line) for line in manifest.read_text().splitlines()]
    plain = [
        {"prompt": row["prompt"], "image": Path(row["references"][0]).name, "number": number}
        for number, row in enumerate(examples)
    ]
    below = [row | {"image": f"images/{row['image']}"} for row in plain]
    _write_lines(rows / "train.jsonl", plain)
    for split in ("train", "test"):
        _write_lines(rows / f"{split}_metadata.jsonl", below)


def _write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def brightness(images: torch.Tensor) -> torch.Tensor:
    """Return a reward that costs nothing, fp32 [B]: how bright images [B, 3, H, W] are."""
    return images.detach().float().mean(dim=(1, 2, 3)).cpu()
