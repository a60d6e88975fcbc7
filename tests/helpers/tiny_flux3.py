"""A tiny Flux3ModularPipeline of random weights, of the published classes, without a download."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from customized_grpo.policies import flux3
from tiny_qwen_edit import qwen_tokenizer
from tiny_qwen_image21 import TEXT_WIDTH, processor, qwen3_vl

TEXT_LAYERS = (1, 2, 3)
LATENT_CHANNELS = 4


def build_pipeline(seed: int = 0) -> Any:
    """Build a pipeline; a token is 16 x 16 pixels, as published, and a window of text 80 tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    tokenizer = qwen_tokenizer()
    pipe = flux3.empty_pipeline()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe.update_components(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=6.93),
            vae=_vae(),
            text_encoder=qwen3_vl(tokenizer),
            tokenizer=processor(tokenizer),
            transformer=_transformer(),
        )
    return pipe


def run_pipeline(
    pipe: Any,
    prompt: str,
    references: Sequence[Tensor],
    size: tuple[int, int],
    *,
    generator: Any,
    steps: int = 3,
    guidance: float = 4.0,
    output: str = "latents",
) -> Any:
    """Call the pipeline with references [3, h, w]; several are taken as they are, and so is one."""
    from diffusers.guiders import ClassifierFreeGuidance

    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=guidance))
    pipe.set_progress_bar_config(disable=True)
    images = [_as_pil(image) for image in references]
    given = {"image": images} if images else {}
    return pipe(
        **given,
        prompt=prompt,
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        generator=generator,
        text_encoder_out_layers=TEXT_LAYERS,
        output_type="pt",
        output=output,
    )


def save_pipeline(pipe: Any, folder: Path) -> Path:
    """Write the pipeline as checkpoints are published."""
    pipe.save_pretrained(str(folder), overwrite_modular_index=True)
    index = folder / "modular_model_index.json"
    content = json.loads(index.read_text())
    published = ["transformers", "Qwen3VLProcessor"]
    content["tokenizer"] = [*published, {**content["tokenizer"][2], "type_hint": published}]
    upsampler = ["transformers", "Qwen3_5ForConditionalGeneration"]
    elsewhere = {"pretrained_model_name_or_path": "nobody/upsampler", "subfolder": "", "type_hint": upsampler}
    content["prompt_upsampler"] = [None, None, elsewhere]
    index.write_text(json.dumps(content))
    return folder


def _as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def _transformer() -> Any:
    from diffusers import Flux3Transformer2DModel

    return Flux3Transformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        cond_in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=len(TEXT_LAYERS) * TEXT_WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
    ).eval()


def _vae() -> Any:
    from tiny_flux2 import small_vae

    return small_vae(LATENT_CHANNELS)
