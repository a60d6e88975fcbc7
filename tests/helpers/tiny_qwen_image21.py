"""A tiny QwenImage21Pipeline of random weights, of the published classes, without a download."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from customized_grpo.policies import qwen
from tiny_qwen_edit import VISION, qwen_tokenizer

LATENT_CHANNELS = 8
TEXT_WIDTH = 32
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_pipeline(seed: int = 0, *, sample_sigmas: list[float] | None = None) -> Any:
    """Build a pipeline; a token is 16 x 16 pixels, as published."""
    from diffusers import QwenImage21Pipeline

    tokenizer = qwen_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = QwenImage21Pipeline(
            scheduler=_scheduler(),
            vae=_vae(),
            text_encoder=qwen3_vl(tokenizer),
            processor=processor(tokenizer),
            transformer=_transformer(),
            sample_sigmas=sample_sigmas,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_pipeline(
    pipe: Any,
    prompt: str,
    references: Sequence[Tensor],
    size: tuple[int, int],
    *,
    generator: Any,
    steps: int = 3,
    guidance: float = 1.0,
    output: str = "latent",
    use_kv_cache: bool = False,
) -> Any:
    """Call the pipeline with references [3, h, w] of one area, which it then leaves at their own sizes."""
    areas = {image.shape[1] * image.shape[2] for image in references} or {64 * 64}
    (area,) = areas
    return pipe(
        image=[_as_pil(image) for image in references] or None,
        prompt=prompt,
        negative_prompt=" " if guidance > 1 else None,
        true_cfg_scale=guidance,
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        generator=generator,
        output_type=output,
        output_resolution=round(area**0.5),
        use_kv_cache=use_kv_cache,
    ).images


def over_white(images: Tensor) -> Tensor:
    """Lay images [B, 4, h, w] in [0, 1] of red, green, blue and opacity over white."""
    opacity = images[:, 3:]
    return images[:, :3] * opacity + (1 - opacity)


def save_pipeline(pipe: Any, folder: Path) -> Path:
    """Write the pipeline as checkpoints are published: their processor has a part that needs torchvision."""
    pipe.save_pretrained(folder)
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    content["processor"] = ["transformers", "Qwen3VLProcessor"]
    index.write_text(json.dumps(content))
    joined = folder / "processor" / "processor_config.json"
    images = json.loads(joined.read_text())["image_processor"]
    joined.unlink()
    images |= {"image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor"}
    (folder / "processor" / "preprocessor_config.json").write_text(json.dumps(images))
    videos = {"video_processor_type": "Qwen3VLVideoProcessor"}
    (folder / "processor" / "video_preprocessor_config.json").write_text(json.dumps(videos))
    return folder


def processor(tokenizer: Any) -> Any:
    """Return a processor of text and images; a slot of its image tokens is 32 x 32 pixels, as published."""
    from transformers import Qwen2VLImageProcessorPil

    images = Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 256 * 256}
    )
    return qwen.processor_class("Qwen3VLProcessor")(images, tokenizer, chat_template=CHAT_TEMPLATE)


def qwen3_vl(tokenizer: Any) -> Any:
    """Return a small vision-language model of the published class."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    start, end, image, video = tokenizer.convert_tokens_to_ids(VISION)
    # wide weights, so that positions and images make a difference to random layers
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 1024,
            "initializer_range": 0.3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 16,
            "out_hidden_size": TEXT_WIDTH,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.3,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    model = Qwen3VLForConditionalGeneration(config).eval()
    # a last norm that scales: the transformers of these families read what comes before it
    torch.nn.init.uniform_(model.model.language_model.norm.weight, 0.5, 1.5)
    return model


def _as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def _transformer() -> Any:
    from diffusers import QwenImage21Transformer2DModel

    return QwenImage21Transformer2DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
    ).eval()


def _vae() -> Any:
    from diffusers import AutoencoderKLQwenImage21

    return AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0, 0.2, -0.1, 0.4, 0.0],
        latents_std=[1.0, 1.5, 0.7, 2.0, 1.0, 0.5, 1.2, 0.9],
    ).eval()


def _scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256,
        max_image_seq_len=8192,
        base_shift=0.5,
        max_shift=0.9,
        shift=1.0,
        shift_terminal=0.02,
        time_shift_type="exponential",
        use_dynamic_shifting=True,
    )
