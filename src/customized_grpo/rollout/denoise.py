"""Denoising a batch with the recipe's sampler, from its noise or from a state on the way."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.policy import Policy
from customized_grpo.rollout.sampler import Sampler
from customized_grpo.rollout.solvers import solve


class Move(NamedTuple):
    """One denoising step of a batch: all [B, L, C], but std; only the mean may have a graph."""

    x: Tensor
    mean: Tensor
    std: Tensor
    x_next: Tensor


def draw_clean(
    policy: Policy,
    sampler: Sampler,
    conditioning: Conditioning,
    x: Tensor,
    generators: Sequence[torch.Generator],
    noisy: Collection[int],
) -> Tensor:
    """Return the finished samples of a batch [B, L, C], by the sampler's solver if it has one.

    Args:
        policy, sampler, conditioning, generators, noisy: As in `denoise`; a solver draws no noise.
        x: States at the first level [B, L, C].
    """
    solver = sampler.stochastic.solver
    if solver is not None:
        return solve(solver, sampler.sigmas, x, lambda x, sigma: policy.velocity(x, sigma, conditioning))
    for move in denoise(policy, sampler, conditioning, x, generators, noisy):
        x = move.x_next
    return x


def denoise(
    policy: Policy,
    sampler: Sampler,
    conditioning: Conditioning,
    x: Tensor,
    generators: Sequence[torch.Generator],
    noisy: Collection[int],
    first_step: int = 0,
    graphed: Collection[int] = (),
) -> Iterator[Move]:
    """Yield the steps of a batch, one call of the policy each; call it without gradients.

    Args:
        policy: The policy.
        sampler: The recipe's sampler.
        conditioning: Of the samples [B].
        x: States before `first_step` [B, L, C].
        generators: One per sample [B], for the noise of its steps.
        noisy: Indices of the steps that draw noise.
        first_step: Index of the first step.
        graphed: Indices of the steps whose mean keeps its graph.
    """
    size = (conditioning.height, conditioning.width)
    for step in range(first_step, sampler.n_steps):
        with torch.set_grad_enabled(step in graphed):
            mean, std = sampler.transition(policy, x, step, conditioning, noisy=step in noisy)
        # The state takes no graph along: each step is trained by itself, not through those after it.
        x_next = mean.detach()
        if step in noisy:
            # A generator for each sample: the noise of a sample does not depend on the batch it is in.
            x_next = x_next + std * policy.noise(generators, *size)
        yield Move(x, mean, std, x_next)
        x = x_next
