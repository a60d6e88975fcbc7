"""Full-size pipelines of published checkpoints without a download: random weights, made on the device.

Text encoders are left out; their embeddings are random. `all_shrunk` makes everything small enough for a CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from customized_grpo.config import Config
from customized_grpo.libraries import quiet
from customized_grpo.policies.architecture import Part
from customized_grpo.policies.checkpoints import CHECKPOINTS, Checkpoint, build_transformer
from customized_grpo.policies.loading import assemble_policy
from customized_grpo.policies.policy import Policy
from customized_grpo.policies.quantisation import quantise_layers
from customized_grpo.seeding import generator


class DrawnText:
    """Replacement of a pipeline's `encode_prompt`: random embeddings that are a function of the prompt.

    Args:
        config: The transformer's.
        dtype: Of the embeddings.
    """

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        self.width = config.joint_attention_dim
        self.pooled_width = config.get("pooled_projection_dim", 0)
        self.dtype = dtype

    def __call__(
        self,
        prompt: Sequence[str],
        device: torch.device,
        max_sequence_length: int,
        prompt_2: None = None,
    ) -> tuple[Tensor, Tensor, None]:
        """Return embeddings [B, T, D], pooled ones [B, P], and no ids, which the policies do not use."""
        chances = [generator(0, "text", one) for one in prompt]
        embeds = torch.stack([torch.randn(max_sequence_length, self.width, generator=c) for c in chances])
        pooled = torch.stack([torch.randn(self.pooled_width, generator=c) for c in chances])
        return embeds.to(device, self.dtype), pooled.to(device, self.dtype), None


def build_pipeline(path: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the pipeline of a published checkpoint with random weights, without its text encoders.

    Args:
        path: Hub id, one of `CHECKPOINTS`.
        device: Where the weights are made.
        dtype: Type of the transformer's weights; the autoencoder's are fp32, as `load_pipeline` has them.
    """
    checkpoint = CHECKPOINTS[path]
    architecture = checkpoint.architecture
    with quiet():
        from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, FluxKontextPipeline
        from transformers import Qwen2Tokenizer

        # the schedule of the published checkpoints, the same for FLUX.1 and FLUX.2
        scheduler = FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, max_image_seq_len=4096
        )
        vae = architecture.vae.build(device=device).eval()
        transformer = build_transformer(path, device, dtype)
        parts: dict[str, Any] = {"scheduler": scheduler, "vae": vae, "transformer": transformer}
        if checkpoint.family == "flux1":
            vae.register_to_config(scaling_factor=0.3611, shift_factor=0.1159)  # ae_params of FLUX.1
            absent = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
            pipe: Any = FluxKontextPipeline(**parts, **absent)
        else:
            tokenizer = Qwen2Tokenizer()
            tokenizer.chat_template = ""  # the policy measures its length
            pipe = Flux2KleinPipeline(
                **parts, text_encoder=None, tokenizer=tokenizer, is_distilled=architecture.distilled
            )
    pipe.encode_prompt = DrawnText(transformer.config, dtype)
    return pipe


def text_encoder_shells(path: str, dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """Return a checkpoint's text encoders on the CPU, of any content: they are there to be moved.

    Args:
        path: Hub id, one of `CHECKPOINTS`.
        dtype: Type of the weights.
    """
    names = ("text_encoder", "text_encoder_2")
    shells = {}
    for name, part in zip(names, CHECKPOINTS[path].architecture.text_encoders, strict=False):
        shells[name] = part.build(dtype=dtype).to_empty(device="cpu")
        shells[name].tie_weights()  # `to_empty` parts what shares its memory
    return shells


def build_policy(config: Config, device: torch.device, *, with_text_encoders: bool = False) -> Policy:
    """Return the recipe's policy with random weights, put together as `load_policy` does.

    Args:
        config: The recipe.
        device: Where to run.
        with_text_encoders: Whether there are text encoders to be moved; embeddings are drawn all the same.
    """
    model = config.model
    dtype = torch.bfloat16 if model.precision == "bf16" else torch.float32
    pipe = build_pipeline(model.path, device, dtype)
    if with_text_encoders:
        pipe.register_modules(**text_encoder_shells(model.path, dtype))
    if model.quantisation is not None:
        quantise_layers(pipe.transformer, model.quantisation, device)
    return assemble_policy(pipe, model, seed=0, device=device)


def shrunk(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint's classes at a size for a CPU: two blocks of each kind, no text encoders."""
    transformer = checkpoint.architecture.transformer
    vae = checkpoint.architecture.vae
    small = {
        "num_layers": 2,
        "num_single_layers": 2,
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
    }
    if "pooled_projection_dim" in transformer.config:
        small["pooled_projection_dim"] = 32
    blocks = {"block_out_channels": (32,) * 4, "layers_per_block": 1}
    architecture = dataclasses.replace(
        checkpoint.architecture,
        transformer=Part(transformer.library, transformer.name, {**transformer.config, **small}),
        vae=Part(vae.library, vae.name, {**vae.config, **blocks}),
        text_encoders=(),
    )
    return dataclasses.replace(checkpoint, architecture=architecture)


@contextmanager
def all_shrunk() -> Iterator[None]:
    """Make every checkpoint small inside the block, and let "compiled" blocks run eagerly.

    Compilers for CPUs take a minute, and the numbers of a tiny model are of no interest.
    """
    with patch.dict(CHECKPOINTS, {name: shrunk(one) for name, one in CHECKPOINTS.items()}):
        torch.compiler.set_stance("force_eager")
        try:
            yield
        finally:
            torch.compiler.set_stance("default")
