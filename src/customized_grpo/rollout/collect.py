"""The rollout: the policy and a stochastic sampler draw groups of samples.

Shapes: P prompts, G samples of each, N = P x G samples, B of them in a batch, T denoising steps, S trained
steps among them, L tokens of C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from customized_grpo.algorithms import samplers
from customized_grpo.data.sampler import count_repeats
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.policy import Policy
from customized_grpo.rollout.batches import sample_batches, sample_conditioning
from customized_grpo.rollout.denoise import denoise
from customized_grpo.rollout.sampler import Sampler, StepPlan
from customized_grpo.rollout.trajectory import Trajectory
from customized_grpo.seeding import generator

if TYPE_CHECKING:
    from customized_grpo.config.schema import RolloutConfig
    from customized_grpo.data.examples import Example
    from customized_grpo.rollout.encoding import PromptEncoder


@dataclass(frozen=True)
class NoiseKey:
    """The part of a sample's random numbers that its prompt does not determine.

    A sample depends on this key, its prompt's id and its number among the samples of that prompt in the
    iteration: not on its batch. A row that an iteration draws twice has two groups, whose samples are
    numbered on.

    Attributes:
        seed: The run's seed.
        iteration: Number of finished iterations.
    """

    seed: int
    iteration: int

    def generator(self, purpose: str, prompt_id: str, number: int) -> torch.Generator:
        """Return a fresh generator for the sample with that number of its prompt."""
        return generator(self.seed, purpose, self.iteration, prompt_id, number)


@torch.no_grad()
def collect(
    policy: Policy,
    sampler: Sampler,
    examples: Sequence[Example],
    config: RolloutConfig,
    *,
    encoder: PromptEncoder,
    group_size: int,
    plan: StepPlan,
    noise_key: NoiseKey,
    repeats: Sequence[int] | None = None,
    keep_means: bool = False,
    before_batch: Callable[[], None] = lambda: None,
    on_batch: Callable[[slice, Tensor], None] = lambda samples, images: None,
) -> Trajectory:
    """Draw `group_size` samples for each example.

    Args:
        policy: The current policy.
        sampler: The recipe's sampler.
        examples: P prompts; those of different buckets are denoised apart.
        config: The recipe's rollout section.
        encoder: Encodes the examples; knows the size of the images.
        group_size: G.
        plan: Which steps draw noise and which are trained.
        noise_key: Selects the random numbers.
        repeats: How often each example's row was drawn before it in this iteration, by any process [P]; None:
            how often it is among the examples before it.
        keep_means: Whether to keep the transition means, which ratio normalisation needs.
        before_batch: Called before every batch; may raise to stop.
        on_batch: Called after every batch with its samples, a range of the N, and their images
            [B, 3, H, W], so that scoring can begin.
    """
    conditionings = encoder(examples)
    parts: list[_TrainedSteps] = []
    images: list[Tensor] = []
    for samples, noise in batches_with_noise(examples, config, group_size, noise_key, repeats):
        before_batch()
        conditioning = sample_conditioning(conditionings, group_size, samples)
        trained, batch_images = _draw(policy, sampler, conditioning, noise, plan, keep_means=keep_means)
        parts.append(trained)
        images.append(batch_images)
        on_batch(samples, batch_images)
    return Trajectory(
        conditionings=conditionings,
        buckets=[example.bucket for example in examples],
        group_size=group_size,
        steps=plan.trained,
        sigmas=sampler.sigmas,
        # batches follow one another along the samples, dimension 1
        x=torch.cat([part.x for part in parts], 1),
        x_next=torch.cat([part.x_next for part in parts], 1),
        mean=torch.cat([part.mean for part in parts], 1) if keep_means else None,
        log_prob=torch.cat([part.log_prob for part in parts], 1),
        images=torch.cat(images),
    )


class BatchNoise(NamedTuple):
    """Random generators of a batch, one per sample: for the initial noise and for that of the steps."""

    initial: list[torch.Generator]
    steps: list[torch.Generator]


def batches_with_noise(
    examples: Sequence[Example],
    config: RolloutConfig,
    group_size: int,
    noise_key: NoiseKey,
    repeats: Sequence[int] | None = None,
) -> Iterator[tuple[slice, BatchNoise]]:
    """Yield the samples that are denoised together, a range of the N, and their noise.

    Args:
        examples, config, group_size, noise_key, repeats: As in `collect`.
    """
    buckets = [example.bucket for example in examples]
    all_samples = slice(0, len(examples) * group_size)
    if repeats is None:
        repeats = count_repeats([example.id for example in examples])
    for samples in sample_batches(buckets, group_size, all_samples, config.batch_size):
        noise = BatchNoise([], [])
        for sample in range(samples.start, samples.stop):
            prompt, place = divmod(sample, group_size)
            prompt_id = examples[prompt].id
            first = repeats[prompt] * group_size  # number of the group's first sample
            number = first + place
            start = first if config.shared_noise else number  # shared: the whole group starts from one noise
            noise.initial.append(noise_key.generator("initial", prompt_id, start))
            noise.steps.append(noise_key.generator("steps", prompt_id, number))
        yield samples, noise


class _TrainedSteps(NamedTuple):
    """The trained steps of a batch: [S, B, L, C], but log_prob [S, B]; an unneeded `mean` is empty."""

    x: Tensor
    x_next: Tensor
    mean: Tensor
    log_prob: Tensor


def _draw(
    policy: Policy,
    sampler: Sampler,
    conditioning: Conditioning,
    noise: BatchNoise,
    plan: StepPlan,
    *,
    keep_means: bool,
) -> tuple[_TrainedSteps, Tensor]:
    """Draw one batch; return its trained steps and its images [B, 3, H, W]."""
    steps: list[_TrainedSteps] = []
    x = policy.noise(noise.initial, conditioning.height, conditioning.width)
    for step, move in enumerate(denoise(policy, sampler, conditioning, x, noise.steps, plan.noisy)):
        if step in plan.trained:
            log_prob = samplers.log_prob(move.x_next, move.mean, move.std)
            # An empty tensor can be stacked and joined like the others.
            mean = move.mean if keep_means else move.x[:0]
            steps.append(_TrainedSteps(move.x, move.x_next, mean, log_prob))
    # S steps of four tensors -> four tensors [S, B, ...]: S counts trained steps, not true ones
    stacked = _TrainedSteps(*[torch.stack(column) for column in zip(*steps, strict=True)])
    return stacked, policy.decode(move.x_next, conditioning.height, conditioning.width)
