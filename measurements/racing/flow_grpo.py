"""flow_grpo's own loop, `main` of scripts/train_flux_kontext.py, in the user's checkout.

What is replaced in its process, so that it runs without CUDA and does the same work:

* `wandb`, which would ask for an account, by a module whose functions do nothing;
* `.module` of the model, which only a model spread over GPUs has, is the model itself;
* rank, scale and layers of its LoRA and the length of prompts, which are constants of the script;
* the reward; evaluation, in whose place the next turn begins; saving.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from diffusers import FluxTransformer2DModel

from racing.gate import Gate
from racing.stand_ins import stand_in
from racing.work import LORA_TARGETS, Work, brightness


def _multi_score(*_: object) -> Any:
    """Return the reward of the race in the place of the script's."""

    def score(images: Any, *_: Any, **__: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"avg": brightness(images).numpy().astype(np.float64)}, {}

    return score


def _script(checkout: Path) -> ModuleType:
    path = checkout / "scripts" / "train_flux_kontext.py"
    spec = importlib.util.spec_from_file_location("train_flux_kontext", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _set(config: Any, work: Work, files: Path, out: Path) -> None:
    """Write the work of the race into its settings."""
    config.pretrained.model = str(files / "model")
    config.dataset = str(files / "rows")
    config.logdir = config.save_dir = str(out)
    config.mixed_precision = "bf16" if work.precision == "bf16" else "no"
    config.resolution = work.size
    config.eval_freq = 1  # the turns
    config.save_freq = 10**9
    config.per_prompt_stat_tracking = (
        False  # its key is a prompt decoded from floats, which transformers 5 refuses
    )
    config.sample.num_steps = work.steps
    config.sample.guidance_scale = work.guidance
    config.sample.train_batch_size = work.batch_size
    config.sample.num_image_per_prompt = work.group_size
    config.sample.num_batches_per_epoch = work.batches
    config.sample.noise_level = 0.8
    config.train.batch_size = work.batch_size
    config.train.gradient_accumulation_steps = work.batches
    config.train.timestep_fraction = (work.trained + 0.01) / work.steps


def run(gate: Gate, work: Work, files: Path, out: Path, checkout: Path) -> None:
    """Train until the race is over."""
    sys.path.insert(0, str(checkout))
    stand_in("wandb", init=None, log=None, Image=None)
    gate.count(FluxTransformer2DModel, "hidden_states", "encoder_hidden_states")
    import flow_grpo.rewards
    from absl import flags
    from peft import LoraConfig, PeftModel

    script = _script(checkout)
    flags.FLAGS(["race", f"--config={checkout / 'config' / 'base.py'}"])
    _set(flags.FLAGS.config, work, files, out)
    PeftModel.module = property(lambda model: model)
    lora = {"r": work.lora_rank, "lora_alpha": work.lora_rank, "target_modules": LORA_TARGETS}
    embed = script.compute_text_embeddings

    def embed_short(*args: Any, **kwargs: Any) -> Any:
        return embed(*args, **(kwargs | {"max_sequence_length": work.text_tokens}))

    script.LoraConfig = lambda **kwargs: LoraConfig(**(kwargs | lora))
    script.compute_text_embeddings = embed_short
    script.eval = gate.wait
    script.save_ckpt = partial(print, "not saved:")
    flow_grpo.rewards.multi_score = _multi_score
    script.main(None)
