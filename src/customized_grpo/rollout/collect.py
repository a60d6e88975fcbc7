"""From prompts to samples: the policy and a stochastic sampler draw trajectories.

Legend: P prompts, G samples of a group, N = P x G samples, T denoising steps, S trained steps among them,
L tokens of C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from customized_grpo import extensions
from customized_grpo.algorithms import samplers
from customized_grpo.algorithms.samplers import ODE, Transition
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.policy import Policy
from customized_grpo.seeding import generator

if TYPE_CHECKING:
    from customized_grpo.config.schema import RolloutConfig
    from customized_grpo.data.examples import Example
    from customized_grpo.rollout.encoding import PromptEncoder


@dataclass(frozen=True)
class Trajectory:
    """Samples of whole groups, with what is needed to train on them.

    Attributes:
        conditionings: Of the P prompts, one sample each; sample n belongs to prompt n // G.
        buckets: Of the P prompts; only samples of one bucket can be in one call of the policy.
        group_size: G.
        steps: True indices of the S trained steps, ascending; T - 1 is never among them.
        sigmas: Noise levels [T + 1], fp32.
        x: States before the trained steps [S, N, L, C], fp32.
        x_next: States after them [S, N, L, C], fp32.
        mean: Transition means at rollout time [S, N, L, C], fp32; None unless asked for.
        log_prob: Log-probabilities at rollout time [S, N], fp32, averaged over L and C.
        images: Decoded samples [N, 3, H, W] in [0, 1].
    """

    conditionings: Sequence[Conditioning]
    buckets: Sequence[Hashable]
    group_size: int
    steps: list[int]
    sigmas: Tensor
    x: Tensor
    x_next: Tensor
    mean: Tensor | None
    log_prob: Tensor
    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def conditioning_of(self, rows: slice) -> Conditioning:
        """Return the conditioning of samples `rows`, which are of one bucket."""
        return of_samples(self.conditionings, rows, self.group_size)

    def batches(self, rows: slice, size: int) -> Iterator[slice]:
        """Split samples `rows` into batches of at most `size` samples of one bucket, in order."""
        return batches(self.buckets, self.group_size, rows, size)


def of_samples(conditionings: Sequence[Conditioning], rows: slice, group_size: int) -> Conditioning:
    """Return the conditioning of samples `rows`, given those of the prompts; groups are consecutive."""
    first, last = rows.start // group_size, (rows.stop - 1) // group_size
    prompts = torch.arange(rows.start, rows.stop) // group_size - first
    return Conditioning.cat(conditionings[first : last + 1]).index(prompts)


def batches(buckets: Sequence[Hashable], group_size: int, rows: slice, size: int) -> Iterator[slice]:
    """Split samples `rows` into consecutive batches of at most `size` samples of one bucket.

    Args:
        buckets: Of each prompt.
        group_size: Samples of a prompt.
        rows: Which samples.
        size: Largest number of samples in a batch.
    """
    start = rows.start
    while start < rows.stop:
        stop = start + 1
        bucket = buckets[start // group_size]
        while stop < min(start + size, rows.stop) and buckets[stop // group_size] == bucket:
            stop += 1
        yield slice(start, stop)
        start = stop


def n_batches(examples: Sequence[Example], group_size: int, size: int) -> int:
    """Return how many batches of at most `size` samples a group of each example makes."""
    everyone = slice(0, len(examples) * group_size)
    return sum(1 for _ in batches([example.bucket for example in examples], group_size, everyone, size))


@dataclass(frozen=True)
class Sampler:
    """A stochastic sampler on one noise schedule; rollout and training go through its `transition`.

    Attributes:
        stochastic: How a step with noise is drawn.
        eta: Its noise scale.
        sigmas: Noise levels [T + 1], fp32.
    """

    stochastic: Transition
    eta: float
    sigmas: Tensor

    def transition(
        self, policy: Policy, x: Tensor, step: int, conditioning: Conditioning, *, noisy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return mean [B, L, C] and std of the step from sigmas[step] to sigmas[step + 1]."""
        velocity = policy.velocity(x, float(self.sigmas[step]), conditioning)
        return self.step_from_velocity(x, velocity, step, noisy=noisy)

    def step_from_velocity(
        self, x: Tensor, velocity: Tensor, step: int, *, noisy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return what `transition` does, given the policy's velocity [B, L, C] at x."""
        sigma, sigma_next = float(self.sigmas[step]), float(self.sigmas[step + 1])
        sigma_max = float(self.sigmas[1])
        if noisy:
            return self.stochastic(x, velocity, sigma, sigma_next, self.eta, sigma_max)
        return ODE(x, velocity, sigma, sigma_next, 0.0, sigma_max)


def build_sampler(policy: Policy, config: RolloutConfig, height: int, width: int) -> Sampler:
    """Return the recipe's sampler on the checkpoint's own noise schedule."""
    sigmas = policy.sigmas(config.steps, policy.n_tokens(height, width))
    return Sampler(extensions.load("sampler", config.sampler), config.eta, sigmas)


def step_plan(
    config: RolloutConfig, fraction: float, iteration: int, seed: int
) -> tuple[set[int], list[int]]:
    """Return (steps that draw noise, steps that are trained) of an iteration; the last step is in neither.

    All samples of an iteration train the same steps.
    """
    window = config.sde_window
    if window is None:
        chance = generator(seed, "steps", iteration)
        return set(range(config.steps - 1)), samplers.trained_steps(
            config.steps, fraction=fraction, generator=chance
        )
    shift_every = window.shift_every or iteration + 1  # 0: the window stays where it is
    inside = samplers.sde_window(iteration, config.steps, window.size, shift_every, window.start)
    return set(inside), samplers.trained_steps(config.steps, window=inside)


@torch.no_grad()
def collect(
    policy: Policy,
    sampler: Sampler,
    examples: Sequence[Example],
    config: RolloutConfig,
    *,
    encode: PromptEncoder,
    group_size: int,
    plan: tuple[set[int], list[int]],
    seeds: tuple[int, int],
    keep_means: bool = False,
    between: Callable[[], None] = lambda: None,
    drawn: Callable[[slice, Tensor], None] = lambda rows, images: None,
) -> Trajectory:
    """Draw `group_size` samples for each example.

    Args:
        policy: The current policy.
        sampler: Its sampler.
        examples: P prompts; those of different buckets are denoised apart.
        config: The recipe's rollout section.
        encode: Encodes them, and knows the size of the images.
        group_size: G.
        plan: (noisy steps, trained steps), from `step_plan`.
        seeds: (run seed, iteration). A sample depends on them, its prompt's id and its number in the group,
            not on what else is in the batch.
        keep_means: Whether the transition means are kept, which ratio normalisation needs.
        between: Called before every batch; may raise to stop.
        drawn: Called with (samples, their images) after every batch, so that scoring can begin.
    """
    conditionings = encode(examples)
    parts = []
    for rows, noise in _batches(examples, config, group_size, seeds):
        between()
        part = of_samples(conditionings, rows, group_size)
        parts.append(_draw(policy, sampler, part, noise, plan, keep_means=keep_means))
        drawn(rows, parts[-1][-1])
    x, x_next, mean, log_prob, images = (list(column) for column in zip(*parts, strict=True))
    return Trajectory(
        conditionings=conditionings,
        buckets=[example.bucket for example in examples],
        group_size=group_size,
        steps=plan[1],
        sigmas=sampler.sigmas,
        x=torch.cat(x, 1),
        x_next=torch.cat(x_next, 1),
        mean=torch.cat(mean, 1) if keep_means else None,
        log_prob=torch.cat(log_prob, 1),
        images=torch.cat(images),
    )


@torch.no_grad()
def predicted_images(
    policy: Policy,
    sampler: Sampler,
    examples: Sequence[Example],
    config: RolloutConfig,
    *,
    encode: PromptEncoder,
    group_size: int,
    noisy: set[int],
    seeds: tuple[int, int],
    between: Callable[[], None] = lambda: None,
) -> Iterator[tuple[slice, int, Tensor]]:
    """Draw the samples that `collect` draws, and yield what the policy takes each for on the way.

    Before step i the policy predicts the clean sample x0 = x_i - sigma_i v(x_i, sigma_i), from the velocity
    that the step uses anyway. As the last step is the ODE's, to sigma 0, it ends in its own prediction.

    Args:
        policy, sampler, examples, config, encode, group_size, seeds, between: As `collect`.
        noisy: The steps that draw noise, from `step_plan`.

    Yields:
        (rows, step, images): samples `rows`, decoded [B, 3, H, W] in [0, 1]; predictions before the steps 0
        to T - 1, and as step T the samples themselves.
    """
    conditionings = encode(examples)
    for rows, noise in _batches(examples, config, group_size, seeds):
        between()
        part = of_samples(conditionings, rows, group_size)
        for step, move in enumerate(_denoise(policy, sampler, part, noise, noisy)):
            clean = move.x - float(sampler.sigmas[step]) * move.velocity
            yield rows, step, policy.decode(clean, *encode.size)
        yield rows, step + 1, policy.decode(move.x_next, *encode.size)


_Noise = tuple[list[torch.Generator], list[torch.Generator]]
"""Generators of the initial noise and of the steps' noise, one each per sample."""


def _batches(
    examples: Sequence[Example], config: RolloutConfig, group_size: int, seeds: tuple[int, int]
) -> Iterator[tuple[slice, _Noise]]:
    """Yield the samples that are denoised together, and their noise."""
    buckets = [example.bucket for example in examples]
    everyone = slice(0, len(examples) * group_size)
    for rows in batches(buckets, group_size, everyone, config.batch_size):
        names = [(examples[row // group_size].id, row % group_size) for row in range(rows.start, rows.stop)]
        yield rows, _noise_generators(names, seeds, config.shared_noise)


def _noise_generators(names: Sequence[tuple[str, int]], seeds: tuple[int, int], shared: bool) -> _Noise:
    seed, iteration = seeds
    initial = [
        generator(seed, "initial", iteration, prompt, 0 if shared else sample) for prompt, sample in names
    ]
    steps = [generator(seed, "steps", iteration, prompt, sample) for prompt, sample in names]
    return initial, steps


def _draw(
    policy: Policy,
    sampler: Sampler,
    conditioning: Conditioning,
    noise: _Noise,
    plan: tuple[set[int], list[int]],
    *,
    keep_means: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draw one batch; returns (x, x_next, mean or nothing, log_prob) of the trained steps and the images."""
    noisy, trained = plan
    kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for step, move in enumerate(_denoise(policy, sampler, conditioning, noise, noisy)):
        if step in trained:
            log_prob = samplers.log_prob(move.x_next, move.mean, move.std)
            kept.append((move.x, move.x_next, move.mean if keep_means else move.x[:0], log_prob))
    stacked = [torch.stack(column) for column in zip(*kept, strict=True)]
    size = (conditioning.height, conditioning.width)
    return stacked[0], stacked[1], stacked[2], stacked[3], policy.decode(move.x_next, *size)


class _Move(NamedTuple):
    """One step of a batch: all [B, L, C], but std."""

    x: Tensor
    velocity: Tensor
    mean: Tensor
    std: Tensor
    x_next: Tensor


def _denoise(
    policy: Policy,
    sampler: Sampler,
    conditioning: Conditioning,
    noise: _Noise,
    noisy: set[int],
) -> Iterator[_Move]:
    """Yield the steps of a batch, one call of the policy each; only the steps `noisy` draw noise."""
    initial, step_noise = noise
    size = (conditioning.height, conditioning.width)
    x = policy.noise(initial, *size)
    for step in range(len(sampler.sigmas) - 1):
        velocity = policy.velocity(x, float(sampler.sigmas[step]), conditioning)
        mean, std = sampler.step_from_velocity(x, velocity, step, noisy=step in noisy)
        x_next = mean
        if step in noisy:
            x_next = mean + std * policy.noise(step_noise, *size)
        yield _Move(x, velocity, mean, std, x_next)
        x = x_next


@torch.no_grad()
def sample(
    policy: Policy,
    conditioning: Conditioning,
    generators: Sequence[torch.Generator],
    sigmas: Tensor,
    batch_size: int,
) -> Tensor:
    """Draw images without noise in the steps, as `generate` and the evaluation do.

    Args:
        policy: The policy.
        conditioning: Of N samples.
        generators: One per sample, for its initial noise.
        sigmas: Noise levels [T + 1].
        batch_size: Samples drawn together.

    Returns:
        Images [N, 3, H, W] in [0, 1].
    """
    size = (conditioning.height, conditioning.width)
    ode = Sampler(ODE, 0.0, sigmas)
    images = []
    for start in range(0, len(generators), batch_size):
        rows = slice(start, min(start + batch_size, len(generators)))
        part = conditioning.index(rows)
        x = policy.noise(generators[rows], *size)
        for step in range(len(sigmas) - 1):
            x, _ = ode.transition(policy, x, step, part)
        images.append(policy.decode(x, *size))
    return torch.cat(images)


def sample_examples(
    policy: Policy,
    encode: PromptEncoder,
    examples: Sequence[Example],
    sigmas: Tensor,
    *,
    samples_per_prompt: int,
    batch_size: int,
    seeds: tuple[int, str],
    between: Callable[[], None] = lambda: None,
) -> Iterator[tuple[slice, Tensor]]:
    """Draw images for examples of any buckets without noise in the steps.

    Args:
        policy: The policy.
        encode: Encodes the examples, and knows the size of the images.
        examples: P prompts.
        sigmas: Noise levels [T + 1].
        samples_per_prompt: S.
        batch_size: Samples drawn together.
        seeds: (seed, purpose). An image depends on them, its prompt's id and its number among the S.
        between: Called before every batch; may raise to stop.

    Yields:
        (rows, images [B, 3, H, W] in [0, 1]): samples `rows` of the P x S, those of a prompt together.
    """
    everyone = slice(0, len(examples) * samples_per_prompt)
    for rows in batches([e.bucket for e in examples], samples_per_prompt, everyone, batch_size):
        between()
        first, last = rows.start // samples_per_prompt, (rows.stop - 1) // samples_per_prompt
        start = first * samples_per_prompt
        conditioning = of_samples(
            encode(examples[first : last + 1]),
            slice(rows.start - start, rows.stop - start),
            samples_per_prompt,
        )
        names = [divmod(row, samples_per_prompt) for row in range(rows.start, rows.stop)]
        generators = [generator(*seeds, examples[prompt].id, number) for prompt, number in names]
        yield rows, sample(policy, conditioning, generators, sigmas, batch_size)
