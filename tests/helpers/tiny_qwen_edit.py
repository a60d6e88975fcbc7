"""A tiny QwenImageEditPlusPipeline of random weights, of the published classes, without a download."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.policies import qwen

LATENT_CHANNELS = 4
TEXT_WIDTH = 32
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
# enough to learn merges from, so that the pipeline's long instructions do not become one token per letter
CORPUS = [
    "system\nDescribe the key features of the input image (color, shape, size, texture, objects, ",
    "background), then explain how the user's text instruction should alter or modify the image. ",
    "Generate a new image that meets the user's requirements while maintaining consistency with the ",
    "original input where appropriate.",
    "user\nPicture 1: a fox with a red hat on the left",
    "assistant\n",
    "Picture 2: a robot on a green floor",
] * 3


def build_pipeline(seed: int = 0, *, zero_cond_t: bool = False) -> Any:
    """Build a pipeline; a token is 8x8 pixels. zero_cond_t is how the checkpoint 2511 differs from 2509."""
    from diffusers import QwenImageEditPlusPipeline

    tokenizer = qwen_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = QwenImageEditPlusPipeline(
            scheduler=_scheduler(),
            vae=_vae(),
            text_encoder=_text_encoder(tokenizer),
            tokenizer=tokenizer,
            processor=qwen.processor_class("Qwen2VLProcessor")(_image_processor(), tokenizer),
            transformer=_transformer(zero_cond_t),
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
    guidance: float = 4.0,
    output: str = "latent",
) -> Tensor:
    """Call the pipeline with references [3, h, w] of one area, which it then leaves at their own sizes."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

    (area,) = {image.shape[1] * image.shape[2] for image in references}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plus, "VAE_IMAGE_SIZE", area)
        return pipe(
            image=[_as_pil(image) for image in references],
            prompt=prompt,
            negative_prompt=" ",
            true_cfg_scale=guidance,
            height=size[0],
            width=size[1],
            num_inference_steps=steps,
            generator=generator,
            output_type=output,
        ).images


@contextmanager
def token_types_forwarded(pipe: Any) -> Iterator[None]:
    """Tell the pipeline's text encoder which tokens are images, which the pipeline forgets."""

    def add(module: Any, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        are_images = (options["input_ids"] == module.config.image_token_id).int()
        return args, {**options, "mm_token_type_ids": are_images}

    handle = pipe.text_encoder.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def save_pipeline(pipe: Any, folder: Path) -> Path:
    """Write the pipeline as checkpoints are published: their processor has a part that needs torchvision."""
    pipe.save_pretrained(folder)
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    content["processor"] = ["transformers", "Qwen2VLProcessor"]
    index.write_text(json.dumps(content))
    processor = folder / "processor"
    joined = processor / "processor_config.json"
    images = json.loads(joined.read_text())["image_processor"]
    joined.unlink()
    images |= {"image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen2_5_VLProcessor"}
    (processor / "preprocessor_config.json").write_text(json.dumps(images))
    videos = {"video_processor_type": "Qwen2VLVideoProcessor"}
    (processor / "video_preprocessor_config.json").write_text(json.dumps(videos))
    (processor / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return folder


@functools.cache
def qwen_tokenizer() -> Any:
    """Train the published class of tokenizer on a few sentences."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    published = Qwen2Tokenizer().backend_tokenizer
    trained = Tokenizer(models.BPE())
    trained.normalizer, trained.pre_tokenizer = published.normalizer, published.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[*SPECIAL, *VISION],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        extra_special_tokens=[*SPECIAL[1:], *VISION],
    )


def _as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def _image_processor() -> Any:
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 256 * 256}
    )


def _text_encoder(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    start, end, image, video = tokenizer.convert_tokens_to_ids(VISION)
    # wide weights, so that positions and images make a difference to random layers
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
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
            "patch_size": 8,
            "window_size": 32,
            "fullatt_block_indexes": [1],
            "out_hidden_size": TEXT_WIDTH,
            "initializer_range": 0.3,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def _transformer(zero_cond_t: bool) -> Any:
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
        zero_cond_t=zero_cond_t,
    ).eval()


def _vae() -> Any:
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 1.5, 0.7, 2.0],
    ).eval()


def _scheduler() -> Any:
    """Noise levels with the numbers of Qwen/Qwen-Image-Edit-2509."""
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
