"""Untrained ToyBox models, built from configurations: the same classes as FLUX.1-Kontext, only small.

Sizes were chosen by measuring image quality against cost on two CPU cores. An f8 autoencoder leaves 16
image and 16 reference tokens at 64 px, three times cheaper than f4. It has 32 latent channels, as FLUX.2's:
with the 16 of FLUX.1 even the best linear code of 8 x 8 pixel blocks keeps the toys at 21.1 dB only, with 32
at 23.8 dB. AutoencoderTiny, the class of TAEF1, trains at 3 ms a 40 px crop on one core where an
AutoencoderKL of that size takes 8.
"""

from __future__ import annotations

import math

import torch
from diffusers import (
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from customized_grpo.toybox.tokenizers import clip_tokenizer, t5_tokenizer

IMAGE_SIZE = 64
LATENT_CHANNELS = 40
VAE_WIDTH = 48
TEXT_TOKENS = 18
TEXT_WIDTH = 96
ATTENTION_HEADS, HEAD_WIDTH = 4, 64
MU = 1.15  # logarithm of the shift of the noise levels
SHIFT = math.exp(MU)
DOUBLE_BLOCKS, SINGLE_BLOCKS = 1, 3


def build_vae() -> AutoencoderTiny:
    """Return the f8 autoencoder (the class of TAEF1), [B, 3, 64, 64] <-> [B, 32, 8, 8]."""
    return AutoencoderTiny(
        encoder_block_out_channels=(VAE_WIDTH,) * 4,
        decoder_block_out_channels=(VAE_WIDTH,) * 4,
        num_encoder_blocks=(0, 0, 0, 0),  # linear, see pretraining/vae.py
        num_decoder_blocks=(4, 3, 1, 0),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def build_transformer() -> FluxTransformer2DModel:
    """Return the flow-matching transformer: 4 x 32 latent channels a token, 2 double and 4 single blocks."""
    spatial = HEAD_WIDTH * 7 // 16
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=DOUBLE_BLOCKS,
        num_single_layers=SINGLE_BLOCKS,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=ATTENTION_HEADS,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(HEAD_WIDTH - 2 * spatial, spatial, spatial),
    )


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Return the scheduler with the settings of FLUX.1-Kontext-dev."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        # FLUX.1 has .5 for 256 tokens; 16 tokens get what FLUX.1 has for an image of 1024 px, so that a
        # third of the steps decides the scene and the others the subject's detail, as there
        base_shift=MU,
        max_shift=MU,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def build_pipeline(seed: int = 0) -> FluxKontextPipeline:
    """Return a whole FluxKontextPipeline with random weights that are a function of `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=2 * TEXT_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=tokenizer.model_max_length,
                projection_dim=TEXT_WIDTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        text_encoder_2 = T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer_2),
                d_model=TEXT_WIDTH,
                d_kv=24,
                d_ff=2 * TEXT_WIDTH,
                num_layers=2,
                num_heads=4,
                relative_attention_num_buckets=8,
                relative_attention_max_distance=32,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
            )
        )
        return FluxKontextPipeline(
            scheduler=build_scheduler(),
            vae=build_vae().eval(),
            text_encoder=text_encoder.eval(),
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2.eval(),
            tokenizer_2=tokenizer_2,
            transformer=build_transformer().eval(),
        )
