"""The loop that was released with the paper, `train_one_step` of train/train_customized_grpo.py.

It runs in the user's checkout of Safeoffellow/Customized-GRPO. What is replaced in its process:

* autocast for "cuda" is autocast for the CPU, and the average over processes is that of one process;
* `hpsv3`, `wandb` and `torchvision`, which it imports, by modules that do nothing, and both rewards by the
  race's;
* two constants of its size of FLUX.1: the channels of a latent, and the width of the LoRA's input in single
  blocks, which `set_lora` does not compute;
* the time steps of a sample, which it takes from a list where it needs the table beside it; without this
  it ends with an IndexError before its first update;
* its data loader, which reads text embeddings from files, by one that has them in memory.

The model is its own `Flux` at the sizes of the race's, with random weights. It has its own data flow: one
sample in a call of the model, whatever the batch size of the race, and all noisy steps; it takes
int(.6 (T - 1)) of T steps for training.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
import transformers
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from PIL import Image

from customized_grpo.data.images import to_tensor
from racing.gate import Gate
from racing.stand_ins import stand_in
from racing.work import Work, brightness

TRANSFORMERS = ("CLIPModel", "CLIPProcessor", "BitImageProcessor", "Dinov2Model")  # classes that it imports
EDITS = {
    r"torch\.tensor\(timestep_value,": "torch.tensor(timestep_values,",
    r"IN_CHANNELS = 16\b": "IN_CHANNELS = LATENT_CHANNELS",
}


def _script(checkout: Path, latent_channels: int, precision: str) -> ModuleType:
    """Return its training script as a module, with the edits that it needs."""
    path = checkout / "train" / "train_customized_grpo.py"
    source = path.read_text()
    edits = EDITS if precision == "bf16" else EDITS | {r"torch\.bfloat16": "torch.float32"}
    for pattern, replacement in edits.items():
        source = re.sub(pattern, replacement, source)
    module = ModuleType("train_customized_grpo")
    module.__dict__["LATENT_CHANNELS"] = latent_channels
    sys.modules[module.__name__] = module  # its dataclass looks its module up
    exec(compile(source, path, "exec"), module.__dict__)
    return module


def _on_the_cpu(precision: str) -> None:
    """Make the calls that need CUDA or several processes do the same here."""
    autocast = torch.autocast
    torch.autocast = lambda *_, **__: autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    dist.all_reduce = lambda *_, **__: None
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


def _model(config: Any, work: Work) -> Any:
    """Return its transformer at the size of a transformer of diffusers, with its LoRA."""
    from uno.flux.model import Flux, FluxParams
    from uno.flux.modules.layers import LoRALinearLayer
    from uno.flux.util import set_lora

    width = config.num_attention_heads * config.attention_head_dim
    params = FluxParams(
        in_channels=config.in_channels,
        vec_in_dim=config.pooled_projection_dim,
        context_in_dim=config.joint_attention_dim,
        hidden_size=width,
        mlp_ratio=4.0,
        num_heads=config.num_attention_heads,
        depth=config.num_layers,
        depth_single_blocks=config.num_single_layers,
        axes_dim=list(config.axes_dims_rope),
        theta=10_000,
        qkv_bias=True,
        guidance_embed=config.guidance_embeds,
    )
    model = Flux(params).to(torch.bfloat16 if work.precision == "bf16" else torch.float32)
    model = set_lora(model.requires_grad_(False), work.lora_rank, None, None, "cpu")
    for block in model.single_blocks:
        block.processor.proj_lora = LoRALinearLayer(5 * width, width, work.lora_rank)
    return model


class _Autoencoder:
    """The race's autoencoder with the calls of the one that it expects."""

    def __init__(self, folder: Path) -> None:
        self.vae = AutoencoderTiny.from_pretrained(folder)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(images).latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents.to(torch.float32)).sample


class _HumanPreference:
    """In the place of HPSv3: the race's reward, of the one image that it gets."""

    def reward(self, images: list[Image.Image], _: list[str]) -> list[list[torch.Tensor]]:
        return [[brightness(to_tensor(images[0])[None])[0]]]


def _rows(files: Path, config: Any, work: Work) -> Iterator[tuple[Any, ...]]:
    """Yield prompts with references and embeddings as its data loader does, for ever."""
    paths = sorted((files / "rows" / "images").glob("*-reference.png"))
    while True:
        for path in paths:
            reference = to_tensor(Image.open(path).convert("RGB"))[None] * 2 - 1
            text = torch.randn(1, work.text_tokens, config.joint_attention_dim)
            pooled = torch.randn(1, config.pooled_projection_dim)
            yield ["a toy"], [path.stem], [reference], [[str(path)]], text, pooled


def run(gate: Gate, work: Work, files: Path, out: Path, checkout: Path) -> None:
    """Train until the race is over."""
    sys.path.insert(0, str(checkout))
    for name in TRANSFORMERS:  # they ask for torchvision themselves, and must not meet the stand-in
        getattr(transformers, name)
    stand_in("wandb")
    stand_in("torchvision")
    stand_in("torchvision.transforms", Compose=None, Normalize=None, ToTensor=None)
    stand_in("torchvision.transforms.functional")
    stand_in("hpsv3", HPSv3RewardInferencer=None)
    config = FluxTransformer2DModel.load_config(files / "model" / "transformer", return_unused_kwargs=False)
    config = FluxTransformer2DModel.from_config(config).config
    vae = _Autoencoder(files / "model" / "vae")
    _on_the_cpu(work.precision)
    script = _script(checkout, vae.vae.config.latent_channels, work.precision)
    script.single_eval_dino_score = lambda _, image, __: brightness(to_tensor(image)[None])[0]
    model = _model(config, work)
    model.gradient_checkpointing = work.checkpointing
    gate.count(type(model), "img", "txt")
    args = script.TrainArgs(
        w=work.size, h=work.size, sampling_steps=work.steps, eta=0.8, num_generations=work.group_size,
        gradient_accumulation_steps=work.samples, training_strategy="all", timestep_fraction=0.6,
        temp_image_path=str(out), learning_rate=1e-4,
    )  # fmt: skip
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=args.learning_rate)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    rows = _rows(files, config, work)
    iteration = 0
    while True:
        gate.wait()
        script.train_one_step(
            args, torch.device("cpu"), model, vae, [_HumanPreference(), None], optimizer, schedule, rows,
            args.max_grad_norm, None, iteration,
        )  # fmt: skip
        iteration += 1
