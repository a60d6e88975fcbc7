"""FLUX.2 pipelines of the real classes with tiny random weights, built from configs: no download.

Load it by path, as tests/policies/test_flux2.py does. The side of a token is 16 pixels, as in the published
models; the text encoders have `TEXT_LAYERS` to join, because they are too shallow for the pipelines' choice.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

TEXT_LAYERS = (1, 2, 3)
MAX_TEXT_TOKENS = 96
LATENT_CHANNELS = 4
HEAD_DIM = 16
N_HEADS = 2
TEXT_WIDTH = 32

WORDS = "a the fox robot bird with red blue hat on left right green floor in of checkered at night"

KLEIN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# messages of FLUX.2-dev are lists of parts
DEV_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
)


def klein(*, distilled: bool = False, text_depth: int = 3, seed: int = 0) -> Any:
    """FLUX.2-klein, distilled or base; with a text_depth of 27 or more the pipeline's own layers exist."""
    from diffusers import Flux2KleinPipeline
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = _tokenizer(KLEIN_CHAT)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder = Qwen3ForCausalLM(Qwen3Config(**_text_config(tokenizer, text_depth)))
        parts = _parts(guidance_embeds=False)
    return _quietly(
        Flux2KleinPipeline(text_encoder=text_encoder, tokenizer=tokenizer, is_distilled=distilled, **parts)
    )


def dev(*, seed: int = 0) -> Any:
    """FLUX.2-dev, with embedded guidance and a Mistral 3 text encoder.

    Its PixtralProcessor needs torchvision; the pipeline only asks it for `apply_chat_template` on text, which
    a tokenizer does as well.
    """
    from diffusers import Flux2Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    tokenizer = _tokenizer(DEV_CHAT)
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 32,
        "patch_size": 16,
    }
    text = {"model_type": "mistral", "sliding_window": None, **_text_config(tokenizer, 3)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder = Mistral3ForConditionalGeneration(
            Mistral3Config(text_config=text, vision_config=vision, image_token_index=0)
        )
        parts = _parts(guidance_embeds=True)
    return _quietly(Flux2Pipeline(text_encoder=text_encoder, tokenizer=tokenizer, **parts))


def small_vae(latent_channels: int) -> Any:
    """Return a small autoencoder of the published class, with statistics that matter."""
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent_channels,
        mid_block_add_attention=False,
    )
    vae.bn.running_mean.normal_(std=0.3)  # with those of a fresh one, forgetting them would go unseen
    vae.bn.running_var.uniform_(0.2, 2.0)
    return vae.eval()


def _parts(*, guidance_embeds: bool) -> dict[str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    vae = small_vae(LATENT_CHANNELS)
    transformer = Flux2Transformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=N_HEADS,
        joint_attention_dim=len(TEXT_LAYERS) * TEXT_WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(HEAD_DIM // 4,) * 4,
        guidance_embeds=guidance_embeds,
    )
    # random weights hardly depend on text and position: let the answer show what there is
    transformer.proj_out.weight.data.mul_(4)
    # as in scheduler_config.json of the published checkpoints
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return {"vae": vae.eval(), "transformer": transformer.eval(), "scheduler": scheduler}


def _text_config(tokenizer: Any, depth: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": depth,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _tokenizer(chat_template: str) -> Any:
    from transformers import Qwen2Tokenizer

    vocab, merges = _vocabulary()
    tokenizer = Qwen2Tokenizer(
        vocab=dict(vocab), merges=list(merges), extra_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    tokenizer.chat_template = chat_template
    return tokenizer


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte pairs that make one token of each word of the prompts and of the system message."""
    import json

    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    prototype = Qwen2Tokenizer().backend_tokenizer
    trained = Tokenizer(models.BPE())
    trained.normalizer, trained.pre_tokenizer = prototype.normalizer, prototype.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator([WORDS, SYSTEM_MESSAGE, "system\nuser\nassistant\n"] * 2, trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _quietly(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    for part in ("text_encoder", "transformer", "vae"):
        getattr(pipe, part).eval()
    return pipe
