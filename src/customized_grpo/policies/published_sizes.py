"""The architectures of published checkpoints, to plan for them and to rebuild them without a download.

Only what decides sizes is written down; everything else keeps the default of the class in diffusers or
transformers. A test counts the parameters of each and compares them with the published sizes.

Sources, read in November 2026:

* FLUX.1: transformer/config.json of FLUX.1-dev as copied by its quantised versions on the hub (for example
  wavespeed/FLUX.1-dev-e4m3); CLIP ViT-L/14 and T5 v1.1 XXL by their own config.json. FLUX.1-Kontext-dev has
  the same classes and sizes.
* FLUX.2-dev: defaults of Flux2Transformer2DModel, and mistralai/Mistral-Small-3.1-24B-Instruct-2503's
  config.json, of which Mistral Small 3.2 is a new training.
* FLUX.2-klein-4B and -base-4B: hidden size 3072 = 24 x 128, 5 double and 20 single blocks, text of three
  layers of Qwen3-4B (github.com/invoke-ai/InvokeAI, backend/flux2/util.py); Qwen/Qwen3-4B's config.json.
* FLUX.2-klein-9B and -base-9B: hidden size 4096 = 32 x 128, 8 double and 24 single blocks, text of three
  layers of Qwen3-8B (Klein9BParams of github.com/black-forest-labs/flux2); Qwen/Qwen3-8B's config.json.
* Qwen-Image-Edit-2509: transformer/config.json as copied by lightx2v/Qwen-Image-Lightning; 2511 differs in
  `zero_cond_t` (docs of diffusers). Qwen/Qwen2.5-VL-7B-Instruct's config.json.
* Qwen-Image-2.1: defaults of QwenImage21Transformer2DModel and AutoencoderKLQwenImage21;
  Qwen/Qwen3-VL-8B-Instruct's config.json.
* FLUX.3 Image Klein Base: defaults of Flux3Transformer2DModel; Qwen/Qwen3-VL-4B-Instruct's config.json.
* Autoencoders: FLUX.1's ae_params (github.com/black-forest-labs/flux: 128 channels x (1, 2, 4, 4), 2 blocks,
  16 latent channels); defaults of AutoencoderKLFlux2 and AutoencoderKLQwenImage.
"""

from __future__ import annotations

from dataclasses import replace

from customized_grpo.policies.architecture import Architecture, Part

_SOURCE = "published sizes (policies/published_sizes.py), nothing downloaded"

_CLIP_L = Part(
    "transformers",
    "CLIPTextModel",
    {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
    },
)
_T5_XXL = Part(
    "transformers",
    "T5EncoderModel",
    {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
)
_QWEN3_4B = Part(
    "transformers",
    "Qwen3ForCausalLM",
    {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
)
_QWEN3_8B = replace(
    _QWEN3_4B,
    config={
        **_QWEN3_4B.config,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "tie_word_embeddings": False,
    },
)
_MISTRAL_SMALL = Part(
    "transformers",
    "Mistral3ForConditionalGeneration",
    {
        "text_config": {
            "model_type": "mistral",
            "vocab_size": 131072,
            "hidden_size": 5120,
            "intermediate_size": 32768,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "head_dim": 64,
            "patch_size": 14,
            "image_size": 1540,
        },
        "tie_word_embeddings": False,
    },
)
_QWEN25_VL_7B = Part(
    "transformers",
    "Qwen2_5_VLForConditionalGeneration",
    {
        "text_config": {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
        },
        "tie_word_embeddings": False,
    },
)

_QWEN3_VL_8B = Part(
    "transformers",
    "Qwen3VLForConditionalGeneration",
    {
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        "vision_config": {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "out_hidden_size": 4096,
        },
        "tie_word_embeddings": False,
    },
)
_QWEN3_VL_4B = replace(
    _QWEN3_VL_8B,
    config={
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        "vision_config": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2560,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        "tie_word_embeddings": True,
    },
)

FLUX1 = Architecture(
    transformer=Part(
        "diffusers",
        "FluxTransformer2DModel",
        {
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
            "axes_dims_rope": (16, 56, 56),
        },
    ),
    vae=Part(
        "diffusers",
        "AutoencoderKL",
        {
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
            "latent_channels": 16,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
    ),
    text_encoders=(_CLIP_L, _T5_XXL),
    distilled=False,
    source=_SOURCE,
)
FLUX2_DEV = Architecture(
    transformer=Part(
        "diffusers",
        "Flux2Transformer2DModel",
        {
            "in_channels": 128,
            "num_layers": 8,
            "num_single_layers": 48,
            "attention_head_dim": 128,
            "num_attention_heads": 48,
            "joint_attention_dim": 15360,
            "guidance_embeds": True,
        },
    ),
    vae=Part("diffusers", "AutoencoderKLFlux2", {"latent_channels": 32}),
    text_encoders=(_MISTRAL_SMALL,),
    distilled=False,
    source=_SOURCE,
)
KLEIN_BASE_4B = Architecture(
    transformer=Part(
        "diffusers",
        "Flux2Transformer2DModel",
        {
            "in_channels": 128,
            "num_layers": 5,
            "num_single_layers": 20,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 3 * 2560,
            "guidance_embeds": False,
        },
    ),
    vae=FLUX2_DEV.vae,
    text_encoders=(_QWEN3_4B,),
    distilled=False,
    source=_SOURCE,
)
KLEIN_BASE_9B = replace(
    KLEIN_BASE_4B,
    transformer=replace(
        KLEIN_BASE_4B.transformer,
        config={
            **KLEIN_BASE_4B.transformer.config,
            "num_layers": 8,
            "num_single_layers": 24,
            "num_attention_heads": 32,
            "joint_attention_dim": 3 * 4096,
        },
    ),
    text_encoders=(_QWEN3_8B,),
)
QWEN_EDIT_2509 = Architecture(
    transformer=Part(
        "diffusers",
        "QwenImageTransformer2DModel",
        {
            "in_channels": 64,
            "out_channels": 16,
            "patch_size": 2,
            "num_layers": 60,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 3584,
            "axes_dims_rope": (16, 56, 56),
        },
    ),
    vae=Part("diffusers", "AutoencoderKLQwenImage", {"base_dim": 96, "z_dim": 16}),
    text_encoders=(_QWEN25_VL_7B,),
    distilled=False,
    source=_SOURCE,
)
QWEN_EDIT_2511 = replace(
    QWEN_EDIT_2509,
    transformer=Part(
        "diffusers",
        "QwenImageTransformer2DModel",
        {**QWEN_EDIT_2509.transformer.config, "zero_cond_t": True},
    ),
)
QWEN_IMAGE21 = Architecture(
    transformer=Part(
        "diffusers",
        "QwenImage21Transformer2DModel",
        {
            "in_channels": 64,
            "out_channels": 64,
            "num_layers": 32,
            "attention_head_dim": 128,
            "num_attention_heads": 32,
            "context_in_dim": 4096,
            "mlp_ratio": 3,
            "axes_dims_rope": (16, 56, 56),
        },
    ),
    vae=Part("diffusers", "AutoencoderKLQwenImage21", {"base_dim": 96, "decoder_base_dim": 144, "z_dim": 64}),
    text_encoders=(_QWEN3_VL_8B,),
    distilled=False,
    source=_SOURCE,
)
FLUX3_KLEIN = Architecture(
    transformer=Part(
        "diffusers",
        "Flux3Transformer2DModel",
        {
            "in_channels": 128,
            "cond_in_channels": 128,
            "num_layers": 5,
            "num_single_layers": 28,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 8 * 2560,
        },
    ),
    vae=FLUX2_DEV.vae,
    text_encoders=(_QWEN3_VL_4B,),
    distilled=False,
    source=_SOURCE,
)
