"""The noise levels of a checkpoint's own scheduler."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from customized_grpo.errors import UserError


def shifted_levels(scheduler: Any, levels: Sequence[float], mu: float) -> Tensor:
    """Return noise levels [T + 1], fp32, on the CPU: the given ones, shifted; then 0.

    Args:
        scheduler: The pipeline's, of diffusers; it stays as it is.
        levels: Levels [T] before the shift, falling.
        mu: The shift.

    Raises:
        UserError: The shift is so large that levels are equal.
    """
    scheduler = copy.deepcopy(scheduler)  # setting its timesteps would change the pipeline
    try:
        # The scheduler shifts the levels by mu and adds the last level, 0.
        scheduler.set_timesteps(sigmas=levels, mu=mu, device="cpu")
    except OverflowError as error:  # of exp(mu)
        raise _too_large(mu) from error
    sigmas: Tensor = scheduler.sigmas.to(dtype=torch.float32, copy=True)
    assert len(sigmas) == len(levels) + 1 and sigmas[-1] == 0, sigmas
    if not bool((sigmas.diff() < 0).all()):  # also for NaN
        raise _too_large(mu)
    return sigmas


def _too_large(mu: float) -> UserError:
    return UserError(
        f"model.mu={mu:g} is too large a shift: some noise levels would be equal",
        hint="It is the logarithm of a factor on the odds of sigma: 1.1 for a shift of 3. null takes the "
        "checkpoint's own.",
    )
