"""Rules, schedules and samplers are tried before anything is loaded: they may be somebody's own code.

Each is called twice with the same input, on random numbers: a wrong shape or type, a number that is not
finite, a change of what it was given, or another result the second time is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from customized_grpo.algorithms.advantages import group_advantages
from customized_grpo.algorithms.rules import Rule, combine
from customized_grpo.algorithms.samplers import Gaussian, Transition
from customized_grpo.algorithms.schedules import Schedule, prompt_weights, prompt_weights_at
from customized_grpo.errors import origin


def check_rule(rule: Rule, group_size: int) -> None:
    """Try a rule on two groups of random samples, so that a faulty one is refused before anything is loaded.

    Raises:
        ValueError: The groups are too small for it, it fails, it does not return one finite advantage for
            each sample, it returns others the second time, or it changes what it is given.
    """
    if group_size < rule.min_group_size:
        raise ValueError(f"is defined for groups of {rule.min_group_size} and more, not of {group_size}")
    for prompt_weight in (0.1, 0.9):
        _try_rule(rule, group_size, torch.tensor([prompt_weight, 1 - prompt_weight]))


def _try_rule(rule: Rule, group_size: int, weights: Tensor) -> None:
    rewards = torch.rand(2 * group_size, 2, generator=torch.Generator().manual_seed(0))
    advantages = group_advantages(rewards, group_size)
    given = (rewards.clone(), advantages.clone())
    results = []
    try:
        for _ in range(2):
            results.append(combine(rule, advantages, weights, rewards=rewards, group_size=group_size))
    except Exception as error:  # a rule may be foreign code: its failure is the user's to read
        reason = f"{type(error).__name__}: {error}{origin(error)}"
        raise ValueError(f"fails on two groups of {group_size}: {reason}") from error
    # The next steps, micro-batches and metrics read the same tensors.
    if not (torch.equal(rewards, given[0]) and torch.equal(advantages, given[1])):
        raise ValueError(
            "changes the batch that it is given; compute new tensors instead (a * b, not a *= b)"
        )
    if not bool(results[0].isfinite().all()):
        raise ValueError(f"gives advantages that are not finite on two groups of {group_size}")
    # A resumed run could not repeat it, and processes would disagree.
    if not torch.equal(*results):
        raise ValueError("gives other advantages when it is called again with the same batch")


def check_schedule(schedule: Schedule, n_steps: int) -> None:
    """Try a schedule for two iterations, so that a faulty one is refused before anything is loaded.

    Raises:
        ValueError: It fails for this number of steps, or gives other weights for the same seed.
    """
    try:
        for seed in range(2):
            _try_schedule(schedule, n_steps, seed)
    except ValueError:
        raise
    except Exception as error:  # a schedule may be foreign code: its failure is the user's to read
        reason = f"{type(error).__name__}: {error}{origin(error)}"
        raise ValueError(f"fails for {n_steps} steps: {reason}") from error


def _try_schedule(schedule: Schedule, n_steps: int, seed: int) -> None:
    middles = (torch.arange(n_steps, dtype=torch.float64) + 0.5) / n_steps
    results = []
    for _ in range(2):
        steps = prompt_weights(schedule, n_steps, seed)
        results.append(torch.cat([steps, prompt_weights_at(schedule, middles, n_steps, seed)]))
    # Each process computes the weights itself, and a resumed run computes them again.
    if not torch.equal(*results):
        raise ValueError(f"gives other weights when it is called again with seed {seed}")


def check_sampler(sampler: Transition, eta: float) -> None:
    """Try a step of a sampler, so that a faulty one is refused before anything is loaded.

    Args:
        sampler: The sampler.
        eta: Strength of its noise, > 0.

    Raises:
        ValueError: It fails, or does not give what `StepFunction` says.
    """
    chance = torch.Generator().manual_seed(0)
    for sigma, sigma_next in ((1.0, 0.9), (0.9, 0.5)):
        x = torch.randn(3, 4, 2, generator=chance)
        velocity = torch.randn(3, 4, 2, generator=chance).requires_grad_()
        given = x.clone()
        try:
            mean, std = sampler(x, velocity, sigma, sigma_next, eta, 0.9)
            again = sampler(x, velocity, sigma, sigma_next, eta, 0.9)
        except Exception as error:  # a sampler may be foreign code: its failure is the user's to read
            reason = f"{type(error).__name__}: {error}{origin(error)}"
            raise ValueError(f"fails at sigma {sigma:g}: {reason}") from error
        if not torch.equal(x, given):
            raise ValueError("changes x, which it is given; compute a new tensor instead")
        problem = _problem_of_steps((mean, std), again, x)
        if problem is not None:
            raise ValueError(f"{problem} (at sigma {sigma:g}, rollout.eta={eta:g})")


def _problem_of_steps(step: Gaussian, again: Gaussian, x: Tensor) -> str | None:
    """Return what is wrong with a step from x [B, L, C] and with the same step, computed again."""
    mean, std = step
    if not isinstance(mean, Tensor) or mean.dtype != torch.float32 or mean.shape != x.shape:
        return f"must give a mean of float32 {list(x.shape)}, gave {_described(mean)}"
    by_row = [len(x), *[1] * (x.ndim - 1)]
    if not isinstance(std, Tensor) or std.dtype != torch.float32 or list(std.shape) not in ([], by_row):
        return f"must give a std of float32 [] or {by_row}, gave {_described(std)}"
    if not bool(mean.isfinite().all()):
        return "gives a mean that is not finite"
    if not bool(((std > 0) & std.isfinite()).all()):
        return f"gives a std of {std.flatten()[0]:g}; it must be finite and > 0, or there is nothing to train"
    if not mean.requires_grad:
        return "gives a mean without gradient with respect to the velocity: nothing would be trained"
    # the loss computes the rollout's step again, and takes any difference for a change of the policy
    if not (torch.equal(mean, again[0]) and torch.equal(std, again[1])):
        return "gives another step when it is called again; noise is drawn by the rollout"
    return None


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__
