"""Solvers of higher order for rollouts without noise: diffusers' schedulers on the checkpoint's own levels.

They need fewer steps than Euler's for the same error. For smooth velocities the error falls by four when the
steps double, by Euler's by two. The last step, to sigma 0, is Euler's in both, which leaves the order as it
is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Course(NamedTuple):
    """A scheduler, and the noise level of each call of the model that it asks for, in order."""

    scheduler: Any
    levels: Tensor


def solve(solver: str, sigmas: Tensor, x: Tensor, velocity: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Return what the probability-flow ODE makes of x.

    Args:
        solver: A key of `SOLVERS`.
        sigmas: Noise levels [T + 1], T >= 2, from that of x to 0; fp32, on the CPU.
        x: States at the first level [B, ...], fp32.
        velocity: Returns the model's velocity for states and their level, of x's shape.

    Returns:
        States at sigma 0, of x's shape, fp32.
    """
    course = SOLVERS[solver](sigmas)
    for call, level in enumerate(course.levels.tolist()):
        timestep = course.scheduler.timesteps[call]
        x = course.scheduler.step(velocity(x, level).float(), timestep, x, return_dict=False)[0]
    return x


def _heun(sigmas: Tensor) -> _Course:
    """Heun's method: a step of Euler's, and once more with the mean of the velocities at both of its ends."""
    from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler

    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(len(sigmas) - 1)
    # it makes levels of its own, even ones, and takes no others
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler.set_begin_index(0)
    return _Course(scheduler, scheduler.sigmas[:-1])


def _dpmpp_2m(sigmas: Tensor) -> _Course:
    """DPM-Solver++(2M) (arXiv 2211.01095): the predicted image is carried on along the last two calls."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = sigmas  # as above
    scheduler.set_begin_index(0)
    return _Course(scheduler, sigmas[:-1])


SOLVERS = {"heun": _heun, "dpmpp_2m": _dpmpp_2m}
"""Every solver by its name, which a `Transition` has as `solver`."""
