"""Weights of the two rewards along the denoising trajectory; the identity weight is 1 - the prompt weight.

Early steps lay out the scene, so they favour the prompt; middle steps draw the subject; the last ones polish.
Progress is u = i / T at the TRUE index i of a step among T, in any order, subset or window in which
steps are trained: build the table once with `prompt_weights` and index it by the step. Step T - 1 is never
trained.

A schedule is a class: its fields are its options. `SCHEDULES` has every schedule by name; one of your own is
a subclass of `Schedule` (docs/extending.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Annotated, Self

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from customized_grpo.algorithms.calibration import ReadCalibration, read_calibration
from customized_grpo.errors import UserError
from customized_grpo.fields import FilePath, Section, Share

FINE = 10_000
"""Parts of [0, 1) over which TDW is averaged."""


class Schedule(Section, ABC):
    """The prompt weight at every denoising step; the fields of a subclass are its options."""

    @abstractmethod
    def __call__(self, n_steps: int, seed: int) -> Tensor:
        """Return the prompt weight of every step, [T] in [0, 1].

        Args:
            n_steps: T, the number of transitions; step T - 1 is never trained.
            seed: Another one in every iteration, for schedules that draw their weights.
        """

    def at_progress(self, progress: Tensor, n_steps: int, seed: int) -> Tensor:
        """Return the prompt weight at progress in [0, 1), [K], where noise levels lie between the steps.

        By default it is the weight of the step that the progress lies in; a schedule with a formula of
        progress uses that.

        Args:
            progress: [K].
            n_steps: T.
            seed: As in a call.
        """
        # a little more, because i / T times T may be rounded to below i
        step = (progress * n_steps + 1e-9).floor().long().clamp_max(n_steps - 1)
        return self(n_steps, seed)[step]

    def check_rollout(self, n_steps: int, sampler: str, eta: float, noisy_steps: Collection[int]) -> None:
        """Refuse a rollout that the schedule is not made for; by default none is refused.

        Args:
            n_steps: T.
            sampler: Name of the sampler.
            eta: Its noise scale.
            noisy_steps: Every step that draws noise at some time.

        Raises:
            ValueError: Says what does not fit.
        """


class Tdw(Schedule):
    """Time-dependent weighting (arXiv 2510.18263): the prompt weight w_p(u) at progress u.

        u < .24         .7
        .24 <= u < .88  .3 + (.7 - .3) * (1 - sigmoid(20 * (u - .4)))
        u >= .88        .5

    The defaults are the paper's: breaks 6 and 22 and centre 10 of 25 steps, slope .8 a step.
    """

    first_break: Share = 0.24
    """Progress at which the prompt weight starts to fall."""
    second_break: Share = 0.88
    """Progress at which it jumps to `late`."""
    centre: float = 0.4
    """Progress at which the fall is half done."""
    slope: float = 20.0
    """Steepness of the fall, per unit of progress."""
    early: Share = 0.7
    """Prompt weight before `first_break`."""
    middle: Share = 0.3
    """Prompt weight that the fall approaches."""
    late: Share = 0.5
    """Prompt weight from `second_break` on."""

    @model_validator(mode="after")
    def _check_breaks(self) -> Self:
        if self.first_break > self.second_break:
            raise ValueError(
                f"first_break must be at most second_break, got {self.first_break} and {self.second_break}"
            )
        return self

    def at(self, progress: Tensor) -> Tensor:
        """Return the prompt weight at progress in [0, 1], of the same shape and dtype.

        Raises:
            ValueError: Progress outside [0, 1].
        """
        if not bool(((progress >= 0) & (progress <= 1)).all()):
            raise ValueError("progress must be in [0, 1]")
        fall = self.middle + (self.early - self.middle) * (
            1 - torch.sigmoid(self.slope * (progress - self.centre))
        )
        late = torch.where(progress < self.second_break, fall, self.late)
        return torch.where(progress < self.first_break, self.early, late)

    def __call__(self, n_steps: int, seed: int) -> Tensor:
        return self.at(_progress(n_steps))

    def at_progress(self, progress: Tensor, n_steps: int, seed: int) -> Tensor:
        # A subclass of the user's has the weights of its steps.
        return self.at(progress) if type(self) is Tdw else super().at_progress(progress, n_steps, seed)


class TdwMean(Tdw):
    """Constant at TDW's mean over the trained steps: the control for "it is only the average weight"."""

    def __call__(self, n_steps: int, seed: int) -> Tensor:
        table = super().__call__(n_steps, seed)
        # Step T - 1 is never trained: its weight is no part of any mean.
        return torch.full_like(table, float(table[:-1].mean()))

    def at_progress(self, progress: Tensor, n_steps: int, seed: int) -> Tensor:
        # over all of [0, 1), which NFT and AWM train; with few steps the mean of the steps is another
        middles = (torch.arange(FINE, dtype=torch.float64) + 0.5) / FINE
        return torch.full_like(progress, float(self.at(middles).mean()))


class InverseTdw(Tdw):
    """TDW reversed in time over the trained steps, which keeps its mean: the control for the order."""

    def __call__(self, n_steps: int, seed: int) -> Tensor:
        table = super().__call__(n_steps, seed)
        # The last entry stays in its place, where nobody reads it.
        return torch.cat([table[:-1].flip(0), table[-1:]])

    def at_progress(self, progress: Tensor, n_steps: int, seed: int) -> Tensor:
        return self.at(1 - progress)


class ShuffledTdw(Tdw):
    """TDW read at a permuted position, as the released code did: same values and mean, no relation to time.

    Every iteration has another permutation of the trained steps.
    """

    def __call__(self, n_steps: int, seed: int) -> Tensor:
        table = super().__call__(n_steps, seed)
        # A generator of its own: the draw must not move the random numbers of the rollout.
        order = torch.randperm(n_steps - 1, generator=torch.Generator().manual_seed(seed))
        return torch.cat([table[:-1][order], table[-1:]])

    def at_progress(self, progress: Tensor, n_steps: int, seed: int) -> Tensor:
        """Read TDW in another of T equal parts of [0, 1), at the same place inside it."""
        order = torch.randperm(n_steps, generator=torch.Generator().manual_seed(seed))
        place = progress * n_steps
        part = place.floor().long().clamp_max(n_steps - 1)
        return self.at(((order[part] + place - part) / n_steps).clamp_max(1))


class Constant(Schedule):
    """The same prompt weight at every step: naive GRPO."""

    prompt_weight: Share = 0.5
    """The prompt weight; identity gets the rest."""

    def __call__(self, n_steps: int, seed: int) -> Tensor:
        return torch.full_like(_progress(n_steps), self.prompt_weight)


class Linear(Schedule):
    """Linear in progress, from `start` at u = 0 to `end` at u = 1 (where the trajectory ends)."""

    start: Share = 0.7
    """Prompt weight at the first step."""
    end: Share = 0.3
    """Prompt weight at the end of the trajectory."""

    def __call__(self, n_steps: int, seed: int) -> Tensor:
        return self.at_progress(_progress(n_steps), n_steps, seed)

    def at_progress(self, progress: Tensor, n_steps: int, seed: int) -> Tensor:
        return self.start + (self.end - self.start) * progress


class Table(Schedule):
    """The prompt weights themselves, one for every step."""

    prompt_weights: Annotated[tuple[Share, ...], Field(min_length=2)]
    """Prompt weight of each of the rollout.steps, the noisiest first; grpo has no use for the last."""

    def __call__(self, n_steps: int, seed: int) -> Tensor:
        if len(self.prompt_weights) != n_steps:
            raise ValueError(f"has {len(self.prompt_weights)} prompt_weights for {n_steps} steps")
        return torch.tensor(self.prompt_weights, dtype=torch.float64)


class Calibrated(Schedule):
    """TDW measured for a model and its sampler, by `cgrpo doctor RECIPE --calibrate FILE`."""

    path: FilePath
    """File with the weights, relative to the working directory."""
    any_base: bool = False
    """Whether weights that were measured on another base may be used."""
    measured: Annotated[ReadCalibration | None, Field(validate_default=True)] = None
    """What the file says; null reads it. It then stays in the recipe: a run needs the file no more."""

    @field_validator("measured")
    @classmethod
    def _read(cls, measured: ReadCalibration | None, info: ValidationInfo) -> ReadCalibration | None:
        path = info.data.get("path")
        if path is None:  # it is wrong, and that is said already
            return measured
        if measured is not None and measured.read_from == str(path):
            return measured
        try:
            return read_calibration(path)
        except UserError as error:
            text = str(error).replace("\n", "\n    ")
            raise PydanticCustomError("part", "{text}", {"text": text}) from error

    def check_rollout(self, n_steps: int, sampler: str, eta: float, noisy_steps: Collection[int]) -> None:
        assert self.measured is not None, "read when it was validated"
        differences = self.measured.other_rollout(n_steps, sampler, eta, noisy_steps)
        if differences:
            raise ValueError(
                f"weights of {self.path} were measured with {', '.join(differences)}; measure them for this "
                f"recipe: `cgrpo doctor RECIPE schedule.name=tdw --calibrate {self.path}`"
            )

    def __call__(self, n_steps: int, seed: int) -> Tensor:
        assert self.measured is not None, "read when it was validated"
        return torch.tensor(self.measured.prompt_weights, dtype=torch.float64)


SCHEDULES: Mapping[str, type[Schedule]] = {
    "tdw": Tdw,
    "constant": Constant,
    "inverse_tdw": InverseTdw,
    "shuffled_tdw": ShuffledTdw,
    "linear": Linear,
    "tdw_mean": TdwMean,
    "table": Table,
    "calibrated": Calibrated,
}
"""Every schedule of the package by its name in recipes."""


def prompt_weights(schedule: Schedule, n_steps: int, seed: int = 0) -> Tensor:
    """Return the prompt weight of every step, to be indexed by the step's true index.

    Args:
        schedule: The schedule, with its options.
        n_steps: T >= 2, the number of transitions.
        seed: Of the iteration; only schedules that draw their weights depend on it.

    Returns:
        [T] in float32; w_id = 1 - w_p.

    Raises:
        ValueError: T < 2, or the schedule does not give T weights in [0, 1].
    """
    weights = schedule(n_steps, seed)
    if weights.shape != (n_steps,) or not bool(((weights >= 0) & (weights <= 1)).all()):
        raise ValueError(f"must give {n_steps} weights in [0, 1], gave {weights.tolist()}")
    return weights.float()


def prompt_weights_at(schedule: Schedule, progress: Tensor, n_steps: int, seed: int = 0) -> Tensor:
    """Return the prompt weight at values of progress that need not be those of steps.

    Args:
        schedule: The schedule, with its options.
        progress: [K] in [0, 1).
        n_steps: T, for schedules that know steps only.
        seed: As in `prompt_weights`.

    Returns:
        [K] in float32; at progress i / T what `prompt_weights` has for step i, except for the controls of
        TDW: their mean over all progress is TDW's, as that over the trained steps is there.

    Raises:
        ValueError: Progress outside [0, 1), or the schedule does not give K weights in [0, 1].
    """
    if not bool(((progress >= 0) & (progress < 1)).all()):
        raise ValueError(f"progress must be in [0, 1), got {progress.tolist()}")
    weights = schedule.at_progress(progress, n_steps, seed)
    if weights.shape != progress.shape or not bool(((weights >= 0) & (weights <= 1)).all()):
        raise ValueError(f"must give {len(progress)} weights in [0, 1], gave {weights.tolist()}")
    return weights.float()


def _progress(n_steps: int) -> Tensor:
    if n_steps < 2:
        raise ValueError(f"n_steps must be at least 2 (the last step is never trained), got {n_steps}")
    # float64, in which 6 / 25 is the very number .24 of `first_break`: the break falls on step 6 itself.
    return torch.arange(n_steps, dtype=torch.float64) / n_steps
