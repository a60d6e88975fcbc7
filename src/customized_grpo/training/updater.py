"""The optimizer's side of an update: steps, clipping, the moving average, and steps that are left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from customized_grpo.engine.attention import attention_gradients_in_fp32
from customized_grpo.engine.deterministic import repeatable
from customized_grpo.errors import UserError
from customized_grpo.policies.lora import load_average, name_average
from customized_grpo.training.optimizers import build_optimizer
from customized_grpo.training.update_report import PassStatistics, UpdateReport

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.config.training import TrainConfig
    from customized_grpo.engine.engine import Engine
    from customized_grpo.training.loss_terms import Loss, Samples
    from customized_grpo.training.signal import LearningSignal

RATIO_TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}
"""Largest deviation of a first-pass ratio from 1 that is still round-off (other batches: 1e-7 in fp32)."""


def ratio_tolerance(config: Config) -> float:
    """Return how far a first-pass ratio may be from 1: by round-off, and not so far that it is clipped."""
    train = config.train
    clip_range = train.awm.clip_range if train.algorithm == "awm" else train.clip_range
    # Beyond half the clip range, round-off alone could switch a sample off.
    return min(RATIO_TOLERANCE[config.model.precision], clip_range / 2)


def rate_factor(train: TrainConfig, iteration: int) -> float:
    """Return the share of the peak learning rate that an iteration has, a function of its number alone.

    After the warm-up of W of N iterations: 1 (constant), (N - i) / (N - W) (linear), or half of
    1 + cos(pi (i - W) / (N - W)) (cosine), as `diffusers.optimization` has them.

    Args:
        train: The recipe's section.
        iteration: i, number of finished iterations.
    """
    warmup = train.warmup_iterations
    if iteration < warmup:
        # i + 1, where diffusers has i: there the first iteration would not train
        return (iteration + 1) / warmup
    # never beyond the end, as a finished run may be asked again
    done = min(1.0, (iteration - warmup) / max(1, train.iterations - warmup))
    match train.learning_rate_schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1 - done
        case "cosine":
            return (1 + math.cos(math.pi * done)) / 2


def average_decay(train: TrainConfig, iteration: int) -> float:
    """Return the decay of the moving average in an iteration's optimizer steps.

    Args:
        train: The recipe's section, which has an average.
        iteration: Number of finished iterations.
    """
    assert train.ema_decay is not None
    if not train.ema_warmup:
        return train.ema_decay
    # as EMAModel of diffusers has it
    return min(train.ema_decay, (1 + iteration) / (10 + iteration))


class Updater:
    """Owns the optimizer and the moving average; turns (samples, signal) into optimizer steps.

    Args:
        config: The recipe.
        loss: The loss of an update; its policy is the one that is trained.
        engine: Backward, clipping, and the sums over processes.

    Attributes:
        average: Moving average of the parameters; None without train.ema_decay.
        skipped_in_a_row: Updates left out since the last optimizer step.
    """

    def __init__(self, config: Config, loss: Loss[Any], engine: Engine) -> None:
        self.train = config.train
        self.use_average = config.evaluation.use_ema
        self.is_deterministic = config.run.deterministic
        self.has_wide_attention = config.train.attention_gradients == "fp32"
        self.ratio_tolerance = ratio_tolerance(config)
        self.loss = loss
        self.policy = loss.policy
        self.engine = engine
        self.parameters = self.policy.trainable_parameters()
        self.optimizer = build_optimizer(config.train, self.parameters)
        self.apply_recipe()
        self.average: list[torch.Tensor] | None = None
        if self.train.ema_decay:
            self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.skipped_in_a_row = 0

    def apply_recipe(self) -> None:
        """Give the optimizer the recipe's settings; a restored one comes with those it was saved with."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.train.learning_rate
            group["betas"] = (self.train.adam_beta1, self.train.adam_beta2)
            group["weight_decay"] = self.train.weight_decay

    def learning_rate(self, iteration: int) -> float:
        """Return the learning rate of an iteration: linear warm-up, then its schedule."""
        return self.train.learning_rate * rate_factor(self.train, iteration)

    def update(
        self,
        samples: Samples,
        signal: LearningSignal,
        iteration: int,
        on_skip: Callable[[int], None] = lambda update: None,
    ) -> UpdateReport:
        """Take `inner_epochs` x `updates_per_iteration` optimizer steps on an iteration's samples.

        Args:
            samples: This process's samples, those of one update in a row.
            signal: Learning signal of the samples of all processes, in the iteration's order.
            iteration: Number of finished iterations.
            on_skip: Called with the number, within its pass, of each update that is left out.

        Raises:
            UserError: Too many updates in a row were left out, or the ratio of the first pass is not 1.
        """
        for group in self.optimizer.param_groups:
            # From the iteration's number alone, so that a resumed run has the same.
            group["lr"] = self.learning_rate(iteration)
        report = UpdateReport()
        for epoch in range(self.train.inner_epochs):
            for update in range(self.train.updates_per_iteration):
                # Only before the first optimizer step is the policy the one that drew the samples.
                is_first = epoch == update == 0
                with (
                    repeatable(self.engine.device, self.is_deterministic),
                    attention_gradients_in_fp32(self.engine.device, self.has_wide_attention),
                ):
                    was_taken = self._step(samples, signal, iteration, update, report, is_first=is_first)
                if not was_taken:
                    on_skip(update)
                    self._skip(report)
        samples.release()
        report.first = report.first.over_processes(self.engine)
        report.all = report.all.over_processes(self.engine)
        return report

    @contextmanager
    def result(self) -> Iterator[None]:
        """Inside the block the adapter is what the run is judged by: with evaluation.use_ema its average."""
        if not self.use_average:
            yield
            return
        assert self.average is not None
        # a copy: the parameters themselves are overwritten with the average
        current = self.policy.adapter_tensors()
        load_average(self.parameters, name_average(self.average))
        try:
            yield
        finally:
            self.policy.load_adapter_tensors(current)

    def _step(
        self,
        samples: Samples,
        signal: LearningSignal,
        iteration: int,
        update: int,
        report: UpdateReport,
        *,
        is_first: bool,
    ) -> bool:
        """Accumulate the gradient of whole groups over all trained steps, then take one optimizer step.

        Returns:
            Whether it was taken. If a loss or gradient of one process is not finite, no process takes it.
        """
        self.optimizer.zero_grad(set_to_none=True)
        is_finite = True
        for term in self.loss.terms(samples, signal, update):
            # Kept going at a non-finite loss: all processes must call backward equally often.
            is_finite = is_finite and math.isfinite(float(term.loss.detach()))
            report.all.add(term)
            if is_first:
                report.first.add(term)
                if self.loss.first_ratio_is_1:
                    self._check_first_pass(report.first)
            self.engine.backward(term.loss)
        # Summed before clipping: the norm is that of the whole update, equal in all processes.
        self.engine.sum_gradients(self.parameters)
        norm = self.engine.clip_grad_norm(self.parameters, self.train.max_grad_norm)
        # A decision of all processes: one that stepped alone would hold another adapter from here on.
        if not self.engine.all_true(is_finite and math.isfinite(norm)):
            return False
        self.skipped_in_a_row = 0
        self.optimizer.step()
        # After the step, of the new parameters.
        self._move_average(iteration)
        report.grad_norms.append(norm)
        return True

    def _check_first_pass(self, statistics: PassStatistics) -> None:
        """Refuse to train a policy that is not the one that drew the samples.

        Raises:
            UserError: A ratio before the first optimizer step is not 1.
        """
        if not statistics.deviation <= self.ratio_tolerance:  # also for NaN
            raise UserError(
                f"an iteration's first pass must have ratio 1, but deviates by {statistics.deviation:.2e} "
                f"(limit {self.ratio_tolerance:.0e}): "
                "rollout and training do not compute the same transition",
                hint="Set train.micro_batch_size equal to rollout.batch_size, or model.precision=fp32. The "
                "limit is at most half of train.clip_range, as a clipped sample teaches nothing.",
            )

    def _skip(self, report: UpdateReport) -> None:
        """Leave an update out.

        Raises:
            UserError: Too many in a row.
        """
        # A non-finite gradient must not meet the next update.
        self.optimizer.zero_grad(set_to_none=True)
        report.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.train.max_nonfinite_steps:
            raise UserError(
                f"{self.skipped_in_a_row} updates in a row had a non-finite loss or gradient",
                hint="Lower train.learning_rate, or set model.precision=fp32; the last checkpoint is intact.",
            )

    def _move_average(self, iteration: int) -> None:
        if self.average is None:
            return
        decay = average_decay(self.train, iteration)
        with torch.no_grad():
            for average, parameter in zip(self.average, self.parameters, strict=True):
                # decay a + (1 - decay) p, in place
                average.lerp_(parameter, 1 - decay)
