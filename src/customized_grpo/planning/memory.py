"""Device memory of a run, part by part and phase by phase.

Bytes of weights, gradients, optimizer state and trajectories are arithmetic; those of passes are replayed
(`dry_run.py`). Gradients stay from one update to the next, as the trainer frees them when the next begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from customized_grpo.planning.dry_run import DryRun

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.config.schema import RewardConfig
    from customized_grpo.planning.work import Batches

Quantisation = Literal["nf4", "int8", "fp8"] | None

GIB = 2**30
FP32 = 4  # bytes of a number
BF16 = 2

NF4_BLOCK = 64
NF4_OUTER_BLOCK = 256
"""Weights that share a scale of 8 bits, and scales that share one of 32 (QLoRA, arXiv 2305.14314)."""

CONTEXT_BYTES = 1 * GIB
"""What a CUDA context and the workspaces of its libraries take of a device, roughly."""
PROGRAM_BYTES = 2 * GIB
"""What Python, torch and the other libraries take of the machine in every process, roughly."""
FRAGMENTATION = 0.05
"""Share of the allocated memory that the allocator wastes, roughly."""
GRAPHS_SHARE = 0.5
"""Share of the free memory that graphs kept from a rollout may take; gradients, optimizer state, decoding,
backward passes and what rewards compute need the rest."""

REWARD_PARAMETERS: Mapping[str, int] = {
    "dino": 86_580_480,
    "clip_t": 151_277_313,
    "clip_i": 151_277_313,
    "hpsv2": 986_109_441,
    "pickscore": 986_109_441,
    "hpsv3": 8_291_375_616,
}
"""Parameters of the default model of a reward: facebook/dinov2-base, openai/clip-vit-base-patch32, CLIP
ViT-H/14, and Qwen2-VL-7B, the body of MizzenAI/HPSv3. The test counts them."""


@dataclass(frozen=True)
class Memory:
    """Predicted bytes on one device.

    Attributes:
        parts: Bytes of each part, by name. Activations are the peak of one batch.
        phases: The most bytes alive at once in each phase of an iteration, by name.
        not_counted: Rewards whose size is not known.
        on_cpu: Whether the device is the CPU, whose memory also holds the program.
    """

    parts: Mapping[str, int]
    phases: Mapping[str, int]
    not_counted: tuple[str, ...]
    on_cpu: bool = False

    @property
    def peak_phase(self) -> str:
        """Return the name of the phase that needs the most."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def peak(self) -> int:
        """Return the bytes of the phase that needs the most, as an allocator counts them."""
        return self.phases[self.peak_phase]

    @property
    def beside(self) -> int:
        """Return the bytes that a process takes of the device beside the recipe: program or context."""
        return PROGRAM_BYTES if self.on_cpu else CONTEXT_BYTES

    @property
    def needed(self) -> int:
        """Return the bytes a device must have: the peak, fragmentation and what is beside the recipe."""
        return int(self.peak * (1 + FRAGMENTATION)) + self.beside


def predict(config: Config, run: DryRun, evaluation: DryRun, batches: Batches, n_trained: int) -> Memory:
    """Predict the memory of a run.

    Args:
        config: The recipe.
        run: Its models without data.
        evaluation: The same at the size of evaluation images.
        batches: How its samples are divided.
        n_trained: Steps, or noise levels, at which a sample is trained.
    """
    model = config.model
    train = config.train
    rollout = config.rollout
    # A process may have fewer samples than a batch takes.
    update_batch = min(train.micro_batch_size, batches.samples_per_process)
    rollout_batch = min(rollout.batch_size, batches.samples_per_process)
    evaluation_batch = config.evaluation.batch_size
    adapter = FP32 * run.adapter_parameters
    rewards, not_counted = reward_bytes(config.rewards)
    encoders = run.dtype.itemsize * run.encoder_parameters
    vae = FP32 * run.vae_parameters
    dequantised = dequantised_bytes(run, model.quantisation)
    # groups of further prompts, beside those that they replace
    further = min(batches.further_prompts, batches.prompts_per_process)
    parts = {
        "base": base_bytes(run, model.quantisation),
        "adapter": adapter,
        "gradients": adapter,  # fp32, as the adapter
        # AdamW's two moments, fp32 or a byte each
        "optimizer": 2 * adapter // (FP32 if train.optimizer == "adamw_8bit" else 1),
        "average": adapter if train.ema_decay else 0,
        "old policy": 0 if train.algorithm == "grpo" else adapter,
        "start": adapter if model.start_lora else 0,  # a copy that stays: the base is measured with it
        "text encoders": encoders,
        "autoencoder": vae,
        "rewards": rewards,
        "conditioning": run.conditioning_bytes
        * (batches.prompts_per_process + further + max(rollout_batch, update_batch)),
        "trajectory": trajectory_bytes(
            config, run, batches.samples_per_process + further * train.group_size, n_trained
        ),
        "rollout pass": dequantised + run.rollout_bytes(rollout_batch),
        "update pass": dequantised
        + run.update_bytes(update_batch, checkpointing=model.gradient_checkpointing, kl=train.kl_weight > 0),
        "evaluation pass": dequantised + evaluation.rollout_bytes(evaluation_batch),
        "encoding": run.encode_bytes(1),  # a prompt at a time
        "decoding": run.decode_bytes(rollout_batch),
        "evaluation decoding": evaluation.decode_bytes(evaluation_batch),
    }
    return Memory(parts, _phases(config, parts), not_counted, on_cpu=model.device == "cpu")


def _phases(config: Config, parts: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes alive in each phase.

    Text encoders that wait on the CPU take turns with the transformer: while they encode, it is there.
    Dropped ones encode everything before there are gradients and optimizer state.
    """

    def total(*names: str) -> int:
        return sum(parts[name] for name in names)

    model = config.model
    keeps_text = model.text_encoders == "keep"
    optimised = 0 if model.text_encoders == "drop" else total("optimizer", "average")
    trained = total("adapter", "gradients", "optimizer", "average", "old policy", "start")
    others = parts["rewards"] + (0 if model.offload_vae else parts["autoencoder"])
    held = others + parts["base"] + (parts["text encoders"] if keeps_text else 0)
    visiting_vae = parts["autoencoder"] if model.offload_vae else 0
    samples = total("conditioning", "trajectory")
    text_alone = 0
    if not keeps_text:
        text_alone = others + optimised + total("start", "text encoders", "conditioning")
    return {
        "load": held + total("adapter", "start"),
        "encode": max(text_alone, held + trained + visiting_vae + total("conditioning", "encoding")),
        "rollout": held + trained + samples + parts["rollout pass"],
        "decode": held + trained + samples + visiting_vae + parts["decoding"],
        "update": held + trained + samples + parts["update pass"],
        # on accelerators AdamW works on all parameters at once, in temporaries of their size
        "optimizer step": held + trained + samples + parts["adapter"],
        # the adapter is copied, so that its average can take its place
        "evaluate": held
        + trained
        + samples
        + parts["adapter"]
        + max(parts["evaluation pass"], visiting_vae + parts["evaluation decoding"]),
    }


def base_bytes(run: DryRun, quantisation: Quantisation) -> int:
    """Return the bytes of the frozen transformer, in the form that `model.quantisation` says."""
    item = run.dtype.itemsize
    quantised = sum(rows * columns for rows, columns in run.block_linears)
    held = item * (run.base_parameters - quantised)
    match quantisation:
        case None:
            return held + item * quantised
        case "nf4":
            return held + sum(nf4_bytes(rows * columns) for rows, columns in run.block_linears)
        case "int8" | "fp8":  # a byte a weight, one scale a row
            return held + sum(rows * (columns + FP32) for rows, columns in run.block_linears)


def nf4_bytes(n_weights: int) -> int:
    """Return the bytes of weights in nf4: half a byte each, and scales whose own scales are fp32."""
    # Rounded up: a last, shorter block has a scale as well.
    scales = -(-n_weights // NF4_BLOCK)
    return -(-n_weights // 2) + scales + FP32 * -(-scales // NF4_OUTER_BLOCK)


def dequantised_bytes(run: DryRun, quantisation: Quantisation) -> int:
    """Return the bytes of the largest quantised layer while it is unpacked for its product.

    nf4 is unpacked at once; the others are scaled in fp32 and then rounded.
    """
    if quantisation is None:
        return 0
    # nf4 is unpacked into the type of the product at once, the others by way of fp32.
    per_weight = run.dtype.itemsize if quantisation == "nf4" else FP32 + run.dtype.itemsize
    return per_weight * max(rows * columns for rows, columns in run.block_linears)


def trajectory_bytes(config: Config, run: DryRun, samples: int, n_trained: int) -> int:
    """Return the bytes of an iteration's samples: states around trained steps, means and images, all fp32.

    Means are kept until all batches are drawn, even where training needs none.
    """
    state = run.n_image * run.token_channels
    image = 3 * config.model.height * config.model.width
    # NFT and AWM keep the clean end alone
    states = 3 * n_trained if config.train.algorithm == "grpo" else 1
    return FP32 * samples * (states * state + image)


def reward_bytes(rewards: Sequence[RewardConfig]) -> tuple[int, tuple[str, ...]]:
    """Return the bytes of the reward models, and the names of rewards whose size is not known.

    Weights are fp32 unless a reward's options say bf16.
    """
    total = 0
    unknown = []
    for reward in rewards:
        if reward.path is None and reward.name in REWARD_PARAMETERS:
            bytes_per_weight = BF16 if reward.options.get("dtype") == "bf16" else FP32
            total += REWARD_PARAMETERS[reward.name] * bytes_per_weight
        else:
            unknown.append(reward.name)
    return total, tuple(unknown)
