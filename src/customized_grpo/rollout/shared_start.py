"""The first steps of a rollout that all samples of a group have in common, drawn once for the group.

With shared noise the samples of a group have one state until the first noisy step: through the ODE steps
before a window of noise, and in the mean of the first noisy step itself. If that step is trained, every
sample computes it, because its graph is needed.

Shapes: P prompts, B samples of a batch, L tokens of C channels.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.policy import Policy
from customized_grpo.rollout.batches import sample_batches
from customized_grpo.rollout.sampler import Sampler, StepPlan

MIN_ROWS = 4
"""Fewest samples of a batch that all larger ones agree with bit for bit on a CPU: below it, products in fp32
take other kernels. Fewer prompts are filled up to it; smaller batches of samples draw every step themselves.
On accelerators the sizes of batches may change the last bits, here as elsewhere."""


@dataclass(frozen=True)
class SharedStart:
    """Where the samples of each group part.

    Attributes:
        next_step: Index of the first step that every sample draws itself.
        means: Mean of the step before it, or the initial noise, of each prompt, P tensors [L, C].
        stds: Standard deviation of that step, P tensors [] or [1, ...]; empty if it draws no noise.
    """

    next_step: int
    means: Sequence[Tensor]
    stds: Sequence[Tensor]

    def of_samples(self, prompts: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Return means [B, L, C] and standard deviations, [] or [B, 1, ...], for samples of prompts [B]."""
        mean = torch.stack([self.means[prompt] for prompt in prompts])
        if not self.stds:
            return mean, None
        if self.stds[0].ndim == 0:  # one number, which depends on the step alone
            return mean, self.stds[0]
        return mean, torch.stack([self.stds[prompt] for prompt in prompts])


def count_shared_steps(plan: StepPlan) -> int:
    """Return how many of the first steps are the same for all samples of a group with shared noise."""
    first = min(plan.noisy)
    return first if first in plan.trained else first + 1


def draw_shared_start(
    policy: Policy,
    sampler: Sampler,
    conditionings: Sequence[Conditioning],
    buckets: Sequence[Hashable],
    initial: Sequence[torch.Generator],
    plan: StepPlan,
    batch_size: int,
) -> SharedStart:
    """Draw the shared steps of every group once; call it without gradients.

    Args:
        policy: The policy.
        sampler: The recipe's sampler.
        conditionings: Of each prompt [P].
        buckets: Bucket of each prompt [P].
        initial: Generator of each group's initial noise [P].
        plan: Which steps draw noise and which are trained.
        batch_size: Prompts in a call of the policy, at least MIN_ROWS.
    """
    n_steps = count_shared_steps(plan)
    means: list[Tensor] = []
    stds: list[Tensor] = []
    for prompts in sample_batches(buckets, 1, slice(0, len(buckets)), batch_size):
        n_prompts = prompts.stop - prompts.start
        last = prompts.stop - 1
        # row of the call -> prompt; the last prompt fills the call up to MIN_ROWS
        rows = [*range(prompts.start, prompts.stop), *[last] * (MIN_ROWS - n_prompts)]
        conditioning = Conditioning.cat([conditionings[row] for row in rows])
        x = policy.noise(initial[prompts], conditioning.height, conditioning.width)
        # The rows that fill up start from the last prompt's noise, and are cut off below.
        x = torch.cat([x, x[-1:].expand(len(rows) - n_prompts, -1, -1)])
        for step in range(n_steps):
            x, std = sampler.transition(policy, x, step, conditioning, noisy=step in plan.noisy)
            if step in plan.noisy:  # the last one
                stds += [std] * n_prompts if std.ndim == 0 else std.expand_as(x)[:n_prompts].unbind()
        means += x[:n_prompts].unbind()
    return SharedStart(n_steps, means, stds)
