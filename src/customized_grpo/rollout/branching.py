"""Branching: from states on the way of a sample, several continuations with the recipe's own sampler.

Each prompt has a trunk: the first sample that training draws for it in its first iteration. It is kept at
the branch points, and from each of them the steps to the end are drawn again K - 1 times, with noise of their
own. Given the state, the trunk's own way on is independent of how the state came about: it is the K-th
continuation at every point, at no cost.

Legend: P prompts, K continuations, T steps, L tokens of C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from customized_grpo.policies.policy import Policy
from customized_grpo.rollout.batches import sample_batches, sample_conditioning
from customized_grpo.rollout.collect import NoiseKey, batches_with_noise
from customized_grpo.rollout.denoise import denoise
from customized_grpo.rollout.sampler import Sampler

if TYPE_CHECKING:
    from customized_grpo.config.schema import RolloutConfig
    from customized_grpo.data.examples import Example
    from customized_grpo.policies.conditioning import Conditioning


@dataclass(frozen=True)
class BranchPlan:
    """Which continuations are drawn of each prompt, and what that costs.

    Attributes:
        noisy: Steps that draw noise, ascending.
        points: Steps before which the trunk branches, ascending; each is noisy, and the first noisy one is
            among them. Before another step there is nothing to measure: it decides nothing.
        continuations: K, at least 2; the trunk's own is one of them.
        n_steps: T.
    """

    noisy: Sequence[int]
    points: Sequence[int]
    continuations: int
    n_steps: int

    @classmethod
    def evenly(cls, noisy: Sequence[int], n_points: int, continuations: int, n_steps: int) -> BranchPlan:
        """Return a plan with at most `n_points` points, evenly spaced over the noisy steps.

        Args:
            noisy: Steps that draw noise; at least one.
            n_points: At least 1.
            continuations: K.
            n_steps: T.
        """
        steps = sorted(noisy)
        count = min(n_points, len(steps))
        # `number` counts points, the index counts noisy steps, and the result is a true step.
        points = [steps[number * len(steps) // count] for number in range(count)]
        return cls(steps, points, continuations, n_steps)

    @property
    def images_per_prompt(self) -> int:
        """Return how many images are made of a prompt."""
        # One image of the trunk serves every point; the other continuations have their own.
        return 1 + len(self.points) * (self.continuations - 1)

    @property
    def passes_per_prompt(self) -> int:
        """Return how often the policy is evaluated for a prompt, per sample and step."""
        return self.n_steps + self.branch_passes_per_prompt

    @property
    def branch_passes_per_prompt(self) -> int:
        """Return the same without the trunk's: a branch before step i needs the steps i to T - 1."""
        return sum(self.n_steps - point for point in self.points) * (self.continuations - 1)


@dataclass(frozen=True)
class Trunks:
    """The first sample of each prompt.

    Attributes:
        conditionings: Conditioning of each prompt [P].
        states: By branch point, the state of each prompt before that step, P tensors [L, C].
        latents: The finished samples, P tensors [L, C].
    """

    conditionings: Sequence[Conditioning]
    states: Mapping[int, Sequence[Tensor]]
    latents: Sequence[Tensor]


@torch.no_grad()
def draw_trunks(
    policy: Policy,
    sampler: Sampler,
    examples: Sequence[Example],
    conditionings: Sequence[Conditioning],
    config: RolloutConfig,
    plan: BranchPlan,
    noise_key: NoiseKey,
    before_batch: Callable[[], None] = lambda: None,
) -> Trunks:
    """Draw the first sample that `collect` draws of each prompt, and keep it at the branch points.

    Args:
        policy: The policy.
        sampler: The recipe's sampler.
        examples: P prompts.
        conditionings: Their conditioning [P].
        config: The recipe's rollout section.
        plan: Where the trunks branch.
        noise_key: As of `collect`.
        before_batch: Called before every batch; may raise to stop.
    """
    states: dict[int, list[Tensor]] = {point: [] for point in plan.points}
    latents: list[Tensor] = []
    # Groups of one: sample n is prompt n. Its number is 0, as that of the first sample in training.
    for samples, noise in batches_with_noise(examples, config, 1, noise_key):
        before_batch()
        conditioning = sample_conditioning(conditionings, 1, samples)
        x = policy.noise(noise.initial, conditioning.height, conditioning.width)
        moves = denoise(policy, sampler, conditioning, x, noise.steps, plan.noisy)
        for step, move in enumerate(moves):
            if step in states:
                # [B, L, C] -> B tensors: a later batch of branches mixes trunks of several batches
                states[step] += move.x.unbind()
        # After the last step `move` holds the finished samples.
        latents += move.x_next.unbind()
    return Trunks(conditionings, states, latents)


@torch.no_grad()
def draw_branches(
    policy: Policy,
    sampler: Sampler,
    examples: Sequence[Example],
    trunks: Trunks,
    config: RolloutConfig,
    plan: BranchPlan,
    noise_key: NoiseKey,
    before_batch: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, slice, Tensor]]:
    """Draw the continuations of the trunks, all but the trunks' own.

    Args:
        policy, sampler, examples, config, plan, noise_key, before_batch: As in `draw_trunks`.
        trunks: What `draw_trunks` returned.

    Yields:
        (place, samples, images): Place of the point in `plan.points`; a range of the P x (K - 1)
        continuations there, those of a prompt in a row; and their images [B, 3, H, W] in [0, 1].
    """
    buckets = [example.bucket for example in examples]
    # The branches of a prompt take the place of its group: sample n is branch n % (K - 1) of its prompt.
    n_branches = plan.continuations - 1
    everyone = slice(0, len(examples) * n_branches)
    for place, point in enumerate(plan.points):
        for samples in sample_batches(buckets, n_branches, everyone, config.batch_size):
            before_batch()
            states: list[Tensor] = []
            generators: list[torch.Generator] = []
            for sample in range(samples.start, samples.stop):
                prompt, number = divmod(sample, n_branches)
                states.append(trunks.states[point][prompt])
                # A purpose for each point: two branches of a prompt never share their noise.
                generators.append(noise_key.generator(f"branch-{point}", examples[prompt].id, number))
            conditioning = sample_conditioning(trunks.conditionings, n_branches, samples)
            x = torch.stack(states)
            for move in denoise(policy, sampler, conditioning, x, generators, plan.noisy, first_step=point):
                x = move.x_next
            yield place, samples, policy.decode(x, conditioning.height, conditioning.width)
