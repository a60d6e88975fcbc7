"""The rollout: the policy and a stochastic sampler draw groups of samples.

Shapes: P prompts, G samples of each, N = P x G samples, B of them in a batch, T denoising steps, S trained
steps among them, L tokens of C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from customized_grpo.algorithms import samplers
from customized_grpo.data.sampler import count_repeats
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.policy import Policy
from customized_grpo.rollout.batches import sample_batches, sample_conditioning
from customized_grpo.rollout.denoise import Move, denoise
from customized_grpo.rollout.graphs import Graphs
from customized_grpo.rollout.sampler import Sampler, StepPlan
from customized_grpo.rollout.shared_start import MIN_ROWS, SharedStart, draw_shared_start
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
    keep_graphs: Callable[[Sequence[Hashable], Sequence[Conditioning]], bool] = lambda buckets, given: False,
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
        keep_graphs: Decides, given buckets and conditionings [P], whether trained steps keep their graphs.
        before_batch: Called before every batch; may raise to stop.
        on_batch: Called after every batch with its samples, a range of the N, and their images
            [B, 3, H, W], so that scoring can begin.
    """
    conditionings = encoder(examples)
    buckets: list[Hashable] = [example.bucket for example in examples]
    keeps_graphs = keep_graphs(buckets, conditionings)
    if repeats is None:
        repeats = count_repeats([example.id for example in examples])
    start = None
    if config.shared_noise and config.batch_size >= MIN_ROWS:
        initial = _group_generators(examples, repeats, group_size, noise_key)
        start = draw_shared_start(policy, sampler, conditionings, buckets, initial, plan, config.batch_size)
    graphs: Graphs = {}
    parts: list[_TrainedSteps] = []
    images: list[Tensor] = []
    for samples, noise in batches_with_noise(examples, config, group_size, noise_key, repeats):
        before_batch()
        conditioning = sample_conditioning(conditionings, group_size, samples)
        # row of the batch -> prompt, by which `start` is indexed
        prompts = [sample // group_size for sample in range(samples.start, samples.stop)]
        states = _begin(policy, conditioning, noise, prompts, start)
        moves, batch_images = _draw(
            policy, sampler, conditioning, states, noise, plan, keeps_graphs=keeps_graphs
        )
        parts.append(_TrainedSteps.of(moves, keep_means=keep_means))
        if keeps_graphs:
            # `moves` has the trained steps only; the key has the true step, by which the update asks.
            for step, move in zip(plan.trained, moves, strict=True):
                graphs[step, samples.start, samples.stop] = (move.mean, move.std)
        images.append(batch_images)
        on_batch(samples, batch_images)
    return Trajectory(
        conditionings=conditionings,
        buckets=buckets,
        group_size=group_size,
        steps=plan.trained,
        sigmas=sampler.sigmas,
        # batches follow one another along the samples, dimension 1
        x=torch.cat([part.x for part in parts], 1),
        x_next=torch.cat([part.x_next for part in parts], 1),
        mean=torch.cat([part.mean for part in parts], 1) if keep_means else None,
        log_prob=torch.cat([part.log_prob for part in parts], 1),
        images=torch.cat(images),
        graphs=graphs,
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


def _group_generators(
    examples: Sequence[Example], repeats: Sequence[int], group_size: int, noise_key: NoiseKey
) -> list[torch.Generator]:
    """Return the generator of each group's initial noise, which is that of its first sample, [P]."""
    generators = []
    for example, repeat in zip(examples, repeats, strict=True):
        generators.append(noise_key.generator("initial", example.id, repeat * group_size))
    return generators


class _TrainedSteps(NamedTuple):
    """The trained steps of a batch: [S, B, L, C], but log_prob [S, B]; an unneeded `mean` is empty."""

    x: Tensor
    x_next: Tensor
    mean: Tensor
    log_prob: Tensor

    @classmethod
    def of(cls, moves: Sequence[Move], *, keep_means: bool) -> _TrainedSteps:
        """Stack the trained steps of a batch, without their graphs."""
        means = [move.mean.detach() for move in moves]
        log_probs = [
            samplers.log_prob(move.x_next, mean, move.std) for move, mean in zip(moves, means, strict=True)
        ]
        # S moves of a batch -> [S, B, ...]: S counts trained steps, not true ones
        return cls(
            x=torch.stack([move.x for move in moves]),
            x_next=torch.stack([move.x_next for move in moves]),
            # an empty tensor can be stacked and joined like the others
            mean=torch.stack(means if keep_means else [move.x[:0] for move in moves]),
            log_prob=torch.stack(log_probs),
        )


class _States(NamedTuple):
    """States of a batch [B, L, C] before a step."""

    next_step: int
    x: Tensor


def _begin(
    policy: Policy,
    conditioning: Conditioning,
    noise: BatchNoise,
    prompts: Sequence[int],
    start: SharedStart | None,
) -> _States:
    """Return the states from which the samples of a batch go their own ways."""
    size = (conditioning.height, conditioning.width)
    if start is None or len(prompts) < MIN_ROWS:
        return _States(0, policy.noise(noise.initial, *size))
    mean, std = start.of_samples(prompts)
    # The first draw of each generator, as it would be without a shared start.
    return _States(start.next_step, mean if std is None else mean + std * policy.noise(noise.steps, *size))


def _draw(
    policy: Policy,
    sampler: Sampler,
    conditioning: Conditioning,
    states: _States,
    noise: BatchNoise,
    plan: StepPlan,
    *,
    keeps_graphs: bool,
) -> tuple[list[Move], Tensor]:
    """Draw the rest of a batch; return its trained steps and its images [B, 3, H, W]."""
    trained: list[Move] = []
    graphed = plan.trained if keeps_graphs else ()
    first = states.next_step
    moves = denoise(policy, sampler, conditioning, states.x, noise.steps, plan.noisy, first, graphed)
    # `moves` begins at `first`: counted from there, `step` is the true step.
    for step, move in enumerate(moves, first):
        if step in plan.trained:
            trained.append(move)
    # The last move, trained or not, ends in the finished sample.
    return trained, policy.decode(move.x_next, conditioning.height, conditioning.width)
