"""How much work an iteration is, as arithmetic on the recipe: batches, tokens, steps and passes.

The unit of work is one forward pass of the transformer for one sample. A backward pass counts as two, its
recomputation under gradient checkpointing as one more, classifier-free guidance doubles all of them, and the
KL term adds one of the base for each trained step, and NFT and AWM one of the old policy. Evaluation is
counted separately.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from customized_grpo import extensions
from customized_grpo.errors import UserError

if TYPE_CHECKING:
    from customized_grpo.algorithms.samplers import Transition
    from customized_grpo.config import Config
    from customized_grpo.config.training import TrainConfig


@dataclass(frozen=True)
class Batches:
    """How an iteration's samples are divided.

    Attributes:
        prompts: Prompts of an iteration, over all processes.
        samples: Samples of an iteration: prompts x group size.
        prompts_per_process: Prompts of one process.
        samples_per_process: Samples of one process.
        rollout_batches: Batches of one process that are denoised one after the other.
        optimizer_steps: Optimizer steps of an iteration.
        samples_per_step: Samples that one optimizer step sees, over all processes.
        micro_batches_per_step: Backward passes of one process that one optimizer step adds up.
        further_prompts: The most that dynamic sampling draws besides; at worst one by one in one process.
    """

    prompts: int
    samples: int
    prompts_per_process: int
    samples_per_process: int
    rollout_batches: int
    optimizer_steps: int
    samples_per_step: int
    micro_batches_per_step: int
    further_prompts: int = 0


@dataclass(frozen=True)
class Passes:
    """Forward-equivalents of the transformer for one prompt, which means for its whole group.

    Attributes:
        rollout: Of drawing the group.
        update: Of training on it, in all inner epochs.
        evaluation: Of one evaluation, for one held-out prompt.
    """

    rollout: int
    update: int
    evaluation: int

    @property
    def iteration(self) -> int:
        """Return the passes of an iteration, without evaluations."""
        return self.rollout + self.update


def batches(config: Config, n_trained: int, processes: int) -> Batches:
    """Divide an iteration's samples among processes, batches and optimizer steps.

    Args:
        config: The recipe.
        n_trained: Steps, or noise levels, at which a sample is trained.
        processes: Number of processes, one per device.

    Raises:
        UserError: The prompts of an update cannot be shared evenly.
    """
    train = config.train
    groups = train.prompts_per_iteration // train.updates_per_iteration
    if groups % processes:
        raise UserError(
            f"{groups} groups per update cannot be shared by {processes} processes evenly",
            hint=f"Make train.prompts_per_iteration a multiple of {train.updates_per_iteration * processes}.",
        )
    prompts_here = train.prompts_per_iteration // processes
    samples_here = prompts_here * train.group_size
    samples_per_step = groups * train.group_size
    return Batches(
        prompts=train.prompts_per_iteration,
        samples=train.prompts_per_iteration * train.group_size,
        prompts_per_process=prompts_here,
        samples_per_process=samples_here,
        rollout_batches=math.ceil(samples_here / config.rollout.batch_size),
        optimizer_steps=train.updates_per_iteration * train.inner_epochs,
        samples_per_step=samples_per_step,
        micro_batches_per_step=n_trained * math.ceil(samples_per_step // processes / train.micro_batch_size),
        further_prompts=0 if train.dynamic_sampling is None else train.dynamic_sampling.budget,
    )


def passes(
    config: Config, n_trained: int, calls: int, n_shared: int = 0, evaluation_calls: float | None = None
) -> Passes:
    """Count forward-equivalents.

    Args:
        config: The recipe.
        n_trained: Steps, or noise levels, at which a sample is trained.
        calls: Calls of the transformer for one velocity: 2 with classifier-free guidance, else 1.
        n_shared: First steps of the rollout that are drawn once for a group.
        evaluation_calls: Forward-equivalents of one velocity of an evaluation image, which may be of another
            size and guidance; None: `calls`.
    """
    per_evaluation_step = calls if evaluation_calls is None else evaluation_calls
    train = config.train
    backward = 2 + config.model.gradient_checkpointing  # a recomputed forward pass counts as one more
    per_trained_step = 1 + backward + other_models(train)
    n_calls = rollout_calls(config)
    return Passes(
        # The shared steps are drawn once for the whole group.
        rollout=calls * (train.group_size * (n_calls - n_shared) + n_shared),
        update=calls * train.group_size * n_trained * per_trained_step * train.inner_epochs,
        evaluation=round(
            per_evaluation_step * config.evaluation.samples_per_prompt * config.evaluation_steps
        ),
    )


def rollout_calls(config: Config) -> int:
    """Return the velocities that a sample of the rollout takes: one a step, or two with some solvers."""
    sampler: Transition = extensions.load("sampler", config.rollout.sampler)
    return sampler.n_calls(config.rollout.steps)


def other_models(train: TrainConfig) -> int:
    """Return how many models besides the trained one are asked at a trained step or noise level.

    NFT and AWM ask the old policy, which may be the one that the KL is from.
    """
    return (train.algorithm != "grpo") + (train.kl_weight > 0 and train.kl_reference != "old")


def seconds(passes: int, flops_per_pass: int, tflops: float) -> float:
    """Return passes x operations of one forward pass / operations per second.

    Args:
        passes: Forward-equivalents.
        flops_per_pass: Floating-point operations of one forward pass of one sample.
        tflops: Rate that the device reaches on this model, in 10^12 operations per second.
    """
    return passes * flops_per_pass / (tflops * 1e12)
