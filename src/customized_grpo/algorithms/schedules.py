"""Weights of the two rewards along the denoising trajectory; the identity weight is 1 - the prompt weight.

Early steps lay out the scene, so they favour the prompt; middle steps draw the subject; the last ones polish.
Progress is u = i / T at the TRUE index i of a step among T, whatever the order, subset or window in which
steps are trained: build the table once with `prompt_weights` and index it by the step. Step T - 1 is never
trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from customized_grpo.algorithms.registry import check_options, lookup


@overload
def tdw(
    progress: float,
    *,
    first_break: float = ...,
    second_break: float = ...,
    centre: float = ...,
    slope: float = ...,
    early: float = ...,
    middle: float = ...,
    late: float = ...,
) -> float: ...


@overload
def tdw(
    progress: Tensor,
    *,
    first_break: float = ...,
    second_break: float = ...,
    centre: float = ...,
    slope: float = ...,
    early: float = ...,
    middle: float = ...,
    late: float = ...,
) -> Tensor: ...


def tdw(
    progress: float | Tensor,
    *,
    first_break: float = 0.24,
    second_break: float = 0.88,
    centre: float = 0.4,
    slope: float = 20.0,
    early: float = 0.7,
    middle: float = 0.3,
    late: float = 0.5,
) -> float | Tensor:
    """Time-dependent weighting: the prompt weight w_p(u).

        u < .24         .7
        .24 <= u < .88  .3 + (.7 - .3) * (1 - sigmoid(20 * (u - .4)))
        u >= .88        .5

    Args:
        progress: u in [0, 1], a float or a floating-point tensor of any shape.
        first_break: Progress at which the prompt weight starts to fall.
        second_break: Progress at which it jumps to `late`.
        centre: Progress at which the fall is half done.
        slope: Steepness of the fall, per unit of progress.
        early: Prompt weight before `first_break`, in [0, 1].
        middle: Prompt weight that the fall approaches, in [0, 1].
        late: Prompt weight from `second_break` on, in [0, 1].

    Returns:
        What came in: a float, or a tensor of the same shape and dtype.

    Raises:
        ValueError: Progress or a weight outside [0, 1], or the breaks out of order.

    Source: arXiv 2510.18263, TDW; the paper's breaks 6, 22 and centre 10 of 25 steps, slope .8 a step.
    """
    if not isinstance(progress, Tensor):
        options = {"first_break": first_break, "second_break": second_break, "centre": centre, "slope": slope}
        u = torch.tensor(progress, dtype=torch.float64)
        return float(tdw(u, early=early, middle=middle, late=late, **options))
    if not bool(((progress >= 0) & (progress <= 1)).all()):
        raise ValueError("progress must be in [0, 1]")
    if not 0 <= first_break <= second_break <= 1:
        raise ValueError(f"need 0 <= first_break <= second_break <= 1, got {first_break} and {second_break}")
    for weight in (early, middle, late):
        _weight(weight)
    fall = middle + (early - middle) * (1 - torch.sigmoid(slope * (progress - centre)))
    return torch.where(progress < first_break, early, torch.where(progress < second_break, fall, late))


def progress_of_sigma(sigma: float | Tensor, sigmas: Tensor) -> Tensor:
    """Return the progress u of noise levels: the piecewise-linear inverse of u = i / T -> sigmas[i].

    Args:
        sigma: Noise levels, any shape, within [sigmas[-1], sigmas[0]].
        sigmas: [T + 1], strictly decreasing, T >= 1.

    Returns:
        Progress in [0, 1], of sigma's shape and of the dtype of `sigmas`; exactly i / T at sigmas[i].

    Raises:
        ValueError: `sigmas` not strictly decreasing, or sigma outside its range.
    """
    if sigmas.ndim != 1 or len(sigmas) < 2 or not bool((sigmas.diff() < 0).all()):
        raise ValueError("sigmas must be [T + 1] and strictly decreasing")
    level = torch.as_tensor(sigma, dtype=sigmas.dtype, device=sigmas.device)
    if not bool(((level >= sigmas[-1]) & (level <= sigmas[0])).all()):
        raise ValueError(f"sigma must be within [{float(sigmas[-1])}, {float(sigmas[0])}]")
    n_steps = len(sigmas) - 1
    step = torch.searchsorted(-sigmas, -level.contiguous(), right=True).sub(1).clamp(0, n_steps - 1)
    fraction = (sigmas[step] - level) / (sigmas[step] - sigmas[step + 1])
    return (step + fraction) / n_steps


def tdw_of_sigma(sigma: float | Tensor, sigmas: Tensor, **options: float) -> Tensor:
    """Return `tdw` at noise levels, for algorithms that draw the time afresh and follow no trajectory.

    Args:
        sigma: Noise levels, any shape.
        sigmas: [T + 1], the schedule that defines progress, as in `progress_of_sigma`.
        options: Those of `tdw`.

    Raises:
        ValueError: As `progress_of_sigma` and `tdw`.
    """
    check_options(tdw, options, "tdw")
    return tdw(progress_of_sigma(sigma, sigmas), **options)


def tdw_table(
    n_steps: int,
    *,
    first_break: float = 0.24,
    second_break: float = 0.88,
    centre: float = 0.4,
    slope: float = 20.0,
    early: float = 0.7,
    middle: float = 0.3,
    late: float = 0.5,
) -> Tensor:
    """`tdw` at every step; its options."""
    options = {"first_break": first_break, "second_break": second_break, "centre": centre, "slope": slope}
    return tdw(_progress(n_steps), early=early, middle=middle, late=late, **options)


def constant(n_steps: int, *, prompt_weight: float = 0.5) -> Tensor:
    """The same prompt weight at every step."""
    return torch.full_like(_progress(n_steps), _weight(prompt_weight))


def tdw_mean(n_steps: int) -> Tensor:
    """Constant at TDW's mean over the trained steps: the control for "it is only the average weight"."""
    return constant(n_steps, prompt_weight=float(tdw_table(n_steps)[:-1].mean()))


def inverse_tdw(n_steps: int) -> Tensor:
    """TDW reversed in time over the trained steps, which keeps its mean: the control for the order."""
    table = tdw_table(n_steps)
    return torch.cat([table[:-1].flip(0), table[-1:]])


def shuffled_tdw(n_steps: int, *, seed: int = 0, permutation: Sequence[int] | None = None) -> Tensor:
    """TDW read at a permuted position, as the released code did: same values and mean, no relation to time.

    Args:
        n_steps: T.
        seed: Draws the permutation of the trained steps; derive it from (run seed, iteration) to have a fresh
            one each iteration.
        permutation: The permutation itself, of 0 .. T - 2; `seed` is then not used.
    """
    table = tdw_table(n_steps)
    if permutation is None:
        order = torch.randperm(n_steps - 1, generator=torch.Generator().manual_seed(seed))
    elif sorted(permutation) == list(range(n_steps - 1)):
        order = torch.tensor(permutation)
    else:
        raise ValueError(f"permutation must hold each of 0 .. {n_steps - 2} once, got {list(permutation)}")
    return torch.cat([table[:-1][order], table[-1:]])


def linear(n_steps: int, *, start: float = 0.7, end: float = 0.3) -> Tensor:
    """Linear in progress, from `start` at u = 0 to `end` at u = 1 (where the trajectory ends)."""
    progress = _progress(n_steps)
    return _weight(start) + (_weight(end) - start) * progress


Schedule = Callable[..., Tensor]
"""`schedule(n_steps, *, option=default, ...) -> [n_steps]`; the keyword-only parameters are its options."""

SCHEDULES: dict[str, Schedule] = {
    "tdw": tdw_table,
    "constant": constant,
    "inverse_tdw": inverse_tdw,
    "shuffled_tdw": shuffled_tdw,
    "linear": linear,
    "tdw_mean": tdw_mean,
}
"""Every schedule by name. Add to it to make a schedule of your own selectable."""


def prompt_weights(name: str, n_steps: int, **options: Any) -> Tensor:
    """Return the prompt weight of every step, to be indexed by the step's true index.

    Args:
        name: A key of `SCHEDULES`.
        n_steps: T >= 2, the number of transitions.
        options: The schedule's own options; see its docstring.

    Returns:
        [T] in float32; w_id = 1 - w_p.

    Raises:
        ValueError: Unknown schedule or option, T < 2, or a weight outside [0, 1].
    """
    schedule = lookup(SCHEDULES, name, "schedule")
    check_options(schedule, options, f"schedule {name!r}")
    weights = schedule(n_steps, **options)
    if weights.shape != (n_steps,) or not bool(((weights >= 0) & (weights <= 1)).all()):
        raise ValueError(f"schedule {name!r} must give {n_steps} weights in [0, 1], gave {weights.tolist()}")
    return weights.float()


def _progress(n_steps: int) -> Tensor:
    if n_steps < 2:
        raise ValueError(f"n_steps must be at least 2 (the last step is never trained), got {n_steps}")
    return torch.arange(n_steps, dtype=torch.float64) / n_steps


def _weight(value: float) -> float:
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise ValueError(f"a prompt weight must be in [0, 1], got {value}")
    return value
