"""Flow-Factory's own loop, `GRPOTrainer.start`, in the user's checkout of X-GenGroup/Flow-Factory.

What it needs in order to run without CUDA is settings only: devices of rewards, references and averages are
"cpu", and samples are kept in the race's precision, because autocast on a CPU has no fp16. The data loader
gets no workers; checkpoints, evaluation, KL and averages are off: see `recipe`. One thing is replaced in its
process: the adapter of FLUX.1-Kontext is told that it has already warned of several references, because what
it does before that warning fails with one.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from diffusers import FluxTransformer2DModel

from racing.gate import Gate
from racing.work import LORA_TARGETS, Work, brightness


def recipe(work: Work, files: Path, out: Path) -> dict[str, Any]:
    """Return its settings: those of examples/grpo/lora/flux1_kontext, and the work of the race."""
    return {
        "mixed_precision": "bf16" if work.precision == "bf16" else "no",
        "data": {
            "dataset_dir": str(files / "rows"),
            "cache_dir": str(out / "cache"),
            "dataloader_num_workers": 0,
        },
        "model": {
            "finetune_type": "lora",
            "lora_rank": work.lora_rank,
            "lora_alpha": work.lora_rank,
            "master_weight_dtype": work.precision,
            "target_modules": LORA_TARGETS,
            "model_name_or_path": str(files / "model"),
            "model_type": "flux1-kontext",
        },
        "log": {"run_name": "race", "logging_backend": "none", "save_dir": str(out), "save_freq": 0},
        "train": {
            "trainer_type": "grpo",
            "clip_range": 1.0e-4,
            "kl_beta": 0,
            "resolution": work.size,
            "condition_image_size": work.size,
            "max_sequence_length": work.text_tokens,
            "num_inference_steps": work.steps,
            "guidance_scale": work.guidance,
            "latent_storage_dtype": work.precision,
            "per_device_batch_size": work.batch_size,
            "group_size": work.group_size,
            "unique_sample_num_per_epoch": work.prompts,
            "gradient_step_per_epoch": 1,
            "enable_gradient_checkpointing": work.checkpointing,
            "ema_decay": 0,
            "ema_device": "cpu",
            "ref_param_device": "cpu",
        },
        "scheduler": {
            "dynamics_type": "Dance-SDE",
            "noise_level": 0.8,
            "num_sde_steps": work.trained,
            "sde_steps": list(range(work.steps - 1)),
        },
        "eval": {"eval_freq": 0, "resolution": work.size},
        "rewards": [
            {
                "name": "bright",
                "reward_model": f"{__name__}.Bright",
                "batch_size": work.samples,
                "device": "cpu",
            }
        ],
    }


def run(gate: Gate, work: Work, files: Path, out: Path, checkout: Path) -> None:
    """Train until the race is over."""
    sys.path.insert(0, str(checkout / "src"))
    gate.count(FluxTransformer2DModel, "hidden_states", "encoder_hidden_states")
    from flow_factory.hparams import Arguments
    from flow_factory.models.flux.flux1_kontext import Flux1KontextAdapter
    from flow_factory.rewards.abc import PointwiseRewardModel, RewardModelOutput
    from flow_factory.trainers import load_trainer
    from flow_factory.trainers.grpo import GRPOTrainer

    class Bright(PointwiseRewardModel):
        """The reward of the race."""

        use_tensor_inputs = True

        def __call__(self, prompt: list[str], image: Any = None, **_: Any) -> Any:
            import torch

            return RewardModelOutput(rewards=brightness(torch.stack(list(image))))

    Flux1KontextAdapter._has_warned_multi_image = property(lambda _: True, lambda *_: None)
    globals()["Bright"] = Bright  # it is loaded by its dotted path
    sample = GRPOTrainer.sample

    def at_the_gate(trainer: Any) -> Any:
        gate.wait()
        return sample(trainer)

    GRPOTrainer.sample = at_the_gate
    trainer = load_trainer(Arguments.from_dict(recipe(work, files, out)))
    if work.precision == "fp32":
        trainer.autocast = contextlib.nullcontext  # its own is bf16 also without mixed precision
    trainer.start()
