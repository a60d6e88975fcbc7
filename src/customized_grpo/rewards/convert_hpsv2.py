"""Make a transformers folder of Human Preference Score v2's open_clip checkpoint.

    python -m customized_grpo.rewards.convert_hpsv2 HPS_v2.1_compressed.pt hpsv2

The checkpoint is a pickle. It is read with torch's `weights_only`, which makes tensors and nothing else, and
written in fp32 as safetensors. open_clip's names and its fused attention weights become those of CLIPModel;
every tensor must have its place. Sizes come from the tensors; what they cannot tell is fixed by ViT-H-14,
whose two towers have 16 heads each, and which uses the exact GELU.
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.files import follow_umask, new_folder
from customized_grpo.libraries import quiet
from customized_grpo.rewards.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel

HEADS = 16
TOKENIZER = "openai/clip-vit-large-patch14"
RENAMED = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # transformers' own spelling
    "visual.ln_post": "vision_model.post_layernorm",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
IN_BLOCKS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
BLOCK = re.compile(r"(?P<visual>visual\.)?transformer\.resblocks\.(?P<layer>\d+)\.(?P<rest>.+)")


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint, by open_clip's names.

    Raises:
        UserError: The file is missing, holds more than tensors, or no `state_dict`.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        # torch's own message would advise to run any code that the file holds
        raise UserError(
            f"{file}: cannot be read as tensors alone",
            hint="Download it again from its authors; a file that holds more than tensors is not loaded.",
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise UserError(f"{file}: there is no state_dict in it")
    return content["state_dict"]


def to_clip(state: dict[str, Tensor], heads: int = HEADS) -> CLIPModel:
    """Return the CLIPModel, fp32, that computes what open_clip does with these weights.

    Args:
        state: Weights by open_clip's names, as of ViT-H-14.
        heads: Attention heads of each tower.

    Raises:
        UserError: Tensors are missing, unknown, or do not fit together.
    """
    from transformers import CLIPModel

    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        renamed |= _convert(name, tensor.float())
    try:
        config = _config(renamed, heads)
        with torch.device("meta"):  # its own random weights are never made
            expected = CLIPModel(config).state_dict()
        missing = sorted(expected.keys() - renamed.keys())
        unknown = sorted(renamed.keys() - expected.keys())
        if missing or unknown:
            raise UserError(f"no ViT-H-14: missing {missing[:3]}, unknown {unknown[:3]}")
        model = CLIPModel(config)
        model.load_state_dict(renamed)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"no ViT-H-14: {error}") from error
    return model.eval()


def _convert(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a tensor under its new names; one with an unknown name keeps it."""
    if name in TRANSPOSED:
        # open_clip multiplies x by these, a Linear of torch by its transpose
        return {TRANSPOSED[name]: tensor.T.contiguous()}
    block = BLOCK.fullmatch(name)
    if block:
        tower = "vision_model" if block["visual"] else "text_model"
        prefix = f"{tower}.encoder.layers.{block['layer']}."
        fused = re.fullmatch(r"attn\.in_proj_(weight|bias)", block["rest"])
        if fused:
            # cloned below, because safetensors refuses tensors that are views of one memory
            parts = zip("qkv", tensor.chunk(3), strict=True)
            return {f"{prefix}self_attn.{part}_proj.{fused[1]}": values.clone() for part, values in parts}
        module, _, kind = block["rest"].rpartition(".")
        return {f"{prefix}{IN_BLOCKS.get(module, module)}.{kind}": tensor}
    if name in RENAMED:
        return {RENAMED[name]: tensor}
    module, _, kind = name.rpartition(".")
    return {f"{RENAMED[module]}.{kind}" if module in RENAMED else name: tensor}


def _config(state: dict[str, Tensor], heads: int) -> CLIPConfig:
    from transformers import CLIPConfig

    patches = state["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    # besides the patches, which form a square, the class token has a position
    positions = len(state["vision_model.embeddings.position_embedding.weight"]) - 1
    vocabulary = len(state["text_model.embeddings.token_embedding.weight"])
    return CLIPConfig(
        projection_dim=len(state["visual_projection.weight"]),
        vision_config={
            **_tower(state, "vision_model", heads),
            "patch_size": patches,
            "image_size": patches * round(positions**0.5),
        },
        text_config={
            **_tower(state, "text_model", heads),
            "vocab_size": vocabulary,
            "max_position_embeddings": len(state["text_model.embeddings.position_embedding.weight"]),
            "bos_token_id": vocabulary - 2,  # CLIP's vocabulary ends with its two special tokens
            "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
        },
    )


def _tower(state: dict[str, Tensor], tower: str, heads: int) -> dict[str, Any]:
    layers = {name.split(".")[3] for name in state if name.startswith(f"{tower}.encoder.layers.")}
    intermediate, width = state[f"{tower}.encoder.layers.0.mlp.fc1.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": intermediate,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "hidden_act": "gelu",
    }


def convert(checkpoint: Path, folder: Path, tokenizer: str = TOKENIZER, heads: int = HEADS) -> None:
    """Write a folder that `Hpsv2Reward.load` reads.

    Args:
        checkpoint: open_clip's file.
        folder: Where to write; it must not exist, or be empty.
        tokenizer: Folder or hub id with CLIP's tokenizer, the same for all of CLIP.
        heads: Attention heads of each tower.

    Raises:
        UserError: Something cannot be read, or the folder holds files.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already and not an empty folder")
    words = load_tokenizer(tokenizer)
    model = to_clip(read_checkpoint(checkpoint), heads)
    if len(words) != model.config.text_config.vocab_size:
        raise UserError(
            f"{tokenizer}: the tokenizer has {len(words)} tokens, "
            f"{checkpoint} needs {model.config.text_config.vocab_size}"
        )
    with new_folder(folder) as draft:
        with quiet(["transformers"]):
            model.save_pretrained(draft)
        words.save_pretrained(draft)
        # safetensors makes files that only their owner can read
        follow_umask(draft)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m customized_grpo.rewards.convert_hpsv2",
        description="Make a transformers folder of Human Preference Score v2's open_clip checkpoint.",
    )
    parser.add_argument("checkpoint", type=Path, help="HPS_v2.1_compressed.pt")
    parser.add_argument("folder", type=Path, help="where to write; new or empty")
    parser.add_argument("--tokenizer", default=TOKENIZER, help="folder or hub id (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        convert(arguments.checkpoint, arguments.folder, arguments.tokenizer)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.folder}: done; in a recipe: {{name: hpsv2, path: {arguments.folder}}}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
