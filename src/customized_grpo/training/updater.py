"""The update: from trajectories and rewards to a step of the adapter.

Legend: N samples in whole groups, S trained steps, K rewards; advantages stay [N, (prompt, identity)] until
the loss of each step, where the weights of that true step combine them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from customized_grpo.algorithms import objective, samplers
from customized_grpo.errors import UserError

if TYPE_CHECKING:
    from customized_grpo.algorithms.rules import Rule
    from customized_grpo.config.schema import AdvantageConfig, TrainConfig
    from customized_grpo.engine.engine import Engine
    from customized_grpo.policies.policy import Policy
    from customized_grpo.rollout.collect import Sampler, Trajectory
    from customized_grpo.training.signal import LearningSignal

RATIO_TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}
"""Largest deviation of a first-pass ratio from 1 that is still round-off (other batches: 1e-7 in fp32)."""


@dataclass
class PassStatistics:
    """Running sums over the loss terms of an update: a term is a valid sample at a trained step."""

    terms: int = 0
    loss: float = 0.0
    ratio: float = 0.0
    deviation: float = 0.0
    clipped: float = 0.0
    kl: float = 0.0

    def add(self, loss: objective.PolicyLoss, value: float, kl: float) -> None:
        """Count one micro-batch at one step; `value` is its share of the batch's loss."""
        n_valid, off_by = int(loss.n_valid), loss.ratio - 1  # 0 where a sample is not valid
        self.terms += n_valid
        self.loss += value
        self.ratio += n_valid + float(off_by.sum())
        self.deviation = max(self.deviation, float(off_by.abs().max()))
        self.clipped += n_valid * float(loss.clip_fraction)
        self.kl += n_valid * kl

    def totalled(self, engine: Engine) -> PassStatistics:
        """Return the statistics of all processes."""
        mine = torch.tensor([self.terms, self.loss, self.ratio, self.clipped, self.kl], dtype=torch.float64)
        terms, loss, ratio, clipped, kl = engine.total(mine).tolist()
        return PassStatistics(int(terms), loss, ratio, engine.largest(self.deviation), clipped, kl)


@dataclass
class UpdateReport:
    """What an iteration's updates did; `skipped` counts steps left out for a non-finite loss or gradient."""

    first: PassStatistics = field(default_factory=PassStatistics)
    all: PassStatistics = field(default_factory=PassStatistics)
    grad_norms: list[float] = field(default_factory=list)
    skipped: int = 0

    def metrics(self) -> dict[str, float]:
        """Return the metrics of one line of metrics.jsonl."""
        terms = max(1, self.all.terms)
        return {
            "policy/loss": self.all.loss / max(1, len(self.grad_norms) + self.skipped),
            "policy/ratio_mean": self.all.ratio / terms,
            "policy/ratio_max_deviation": self.first.deviation,
            "policy/clip_fraction": self.all.clipped / terms,
            "policy/kl": self.all.kl / terms,
            "policy/grad_norm": sum(self.grad_norms) / max(1, len(self.grad_norms)),
            "health/skipped_updates": self.skipped,
        }


class Updater:
    """Owns the optimizer and turns (trajectory, signal) into optimizer steps.

    Args:
        policy: The policy whose adapter is trained.
        sampler: The sampler that drew the trajectories: training evaluates the same transitions.
        engine: Backward, clipping, and the sums over processes.
        train: The recipe's train section.
        advantage: The recipe's advantage section.
        precision: Of the model; decides how exact the first ratio must be.
    """

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        engine: Engine,
        train: TrainConfig,
        advantage: AdvantageConfig,
        precision: str,
    ) -> None:
        self.policy, self.sampler, self.engine = policy, sampler, engine
        self.train, self.advantage, self.precision = train, advantage, precision
        self.rule: Rule = advantage.build()
        self.parameters = policy.trainable_parameters()
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=train.learning_rate,
            betas=(train.adam_beta1, train.adam_beta2),
            weight_decay=train.weight_decay,
        )
        self.share = engine.share(train.updates_per_iteration)
        self.average = [p.detach().clone() for p in self.parameters] if train.ema_decay else None
        self.skipped_in_a_row = 0

    def learning_rate(self, iteration: int) -> float:
        """Return the learning rate of an iteration: linear warm-up, then constant."""
        warmup = self.train.warmup_iterations
        return self.train.learning_rate * min(1.0, (iteration + 1) / warmup if warmup else 1.0)

    def update(
        self,
        trajectory: Trajectory,
        signal: LearningSignal,
        iteration: int,
        on_skip: Callable[[int], None] = lambda step: None,
    ) -> UpdateReport:
        """Take `inner_epochs` x `updates_per_iteration` optimizer steps on an iteration's samples.

        Args:
            trajectory: This process's samples, those of one optimizer step together.
            signal: Of the samples of all processes, in the iteration's order.
            iteration: Of training.
            on_skip: Told the number of each optimizer step, within its pass, that is left out.

        Raises:
            UserError: Too many steps in a row were left out, or the first pass has not ratio 1.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(iteration)
        report = UpdateReport()
        for epoch in range(self.train.inner_epochs):
            for step in range(self.train.updates_per_iteration):
                if not self._step(trajectory, signal, step, report, first=epoch == step == 0):
                    on_skip(step)
                    self._skip(report)
        report.first, report.all = report.first.totalled(self.engine), report.all.totalled(self.engine)
        return report

    def _step(
        self, trajectory: Trajectory, signal: LearningSignal, step: int, report: UpdateReport, *, first: bool
    ) -> bool:
        """Accumulate the gradient of whole groups over all trained steps, then take one optimizer step.

        Returns:
            whether it was taken: not, in any process, with a loss or gradient that is not finite in one.
        """
        self.optimizer.zero_grad(set_to_none=True)
        finite = True
        for loss, statistics, kl in self._losses(trajectory, signal, step):
            value = float(loss.detach())
            finite = finite and math.isfinite(value)
            report.all.add(statistics, value, kl)
            if first:
                report.first.add(statistics, value, kl)
                self._check_first_pass(report.first)
            self.engine.backward(loss)
        self.engine.sum_gradients(self.parameters)
        norm = self.engine.clip_grad_norm(self.parameters, self.train.max_grad_norm)
        if not self.engine.smallest(finite and math.isfinite(norm)):
            return False
        self.skipped_in_a_row = 0
        self.optimizer.step()
        self._average()
        report.grad_norms.append(norm)
        return True

    def _losses(
        self, trajectory: Trajectory, signal: LearningSignal, update: int
    ) -> Iterator[tuple[Tensor, objective.PolicyLoss, float]]:
        """Yield (loss, its statistics, KL) of this process's micro-batches at every trained step.

        The losses of all processes add up to that of the optimizer step number `update`.
        """
        size = len(signal.valid) // self.train.updates_per_iteration
        chosen = signal.rows(slice(update * size, (update + 1) * size))
        total = int(chosen.valid.sum()) * len(trajectory.steps)
        if total == 0:
            return
        own = self.share.own(size)
        mine, valid = own.stop - own.start, chosen.valid[own]
        rows = slice(update * mine, (update + 1) * mine)
        for k, step in enumerate(trajectory.steps):
            advantage = chosen.combined(step, self.rule, trajectory.group_size, self.advantage.clip)[own]
            for part in trajectory.batches(rows, self.train.micro_batch_size):
                inside = slice(part.start - rows.start, part.stop - rows.start)
                yield self._loss(trajectory, k, part, advantage[inside], valid[inside], total)

    def _loss(
        self, trajectory: Trajectory, k: int, rows: slice, advantage: Tensor, valid: Tensor, total: int
    ) -> tuple[Tensor, objective.PolicyLoss, float]:
        step, conditioning = trajectory.steps[k], trajectory.conditioning_of(rows)
        x, x_next = trajectory.x[k, rows], trajectory.x_next[k, rows]
        mean, std = self.sampler.transition(self.policy, x, step, conditioning)
        log_prob, old = samplers.log_prob(x_next, mean, std), trajectory.log_prob[k, rows]
        scale = 1.0
        if trajectory.mean is not None:  # GRPO-Guard: ratios and gradients on one scale over all steps
            log_prob = objective.normalised_log_ratio(log_prob, old, mean, trajectory.mean[k, rows], std)
            old = torch.zeros_like(old)
            scale = 1 / float(self.sampler.sigmas[step] - self.sampler.sigmas[step + 1])
        device = log_prob.device
        result = objective.policy_loss(
            log_prob,
            old,
            advantage.to(device),
            self.train.clip_range,
            valid=valid.to(device),
            total=total,
        )
        loss, kl = result.loss * scale, 0.0
        if self.train.kl_weight:
            divergence = self._kl(x, step, rows, trajectory, mean, std)[valid.to(device)].sum() / total
            loss = loss + self.train.kl_weight * divergence
            kl = float(divergence.detach()) * total / max(1, int(valid.sum()))
        return loss, result, kl

    def _kl(
        self, x: Tensor, step: int, rows: slice, trajectory: Trajectory, mean: Tensor, std: Tensor
    ) -> Tensor:
        """Return KL(policy || base) of one transition [B], averaged over the latent."""
        with torch.no_grad(), self.policy.reference():
            conditioning = trajectory.conditioning_of(rows)
            reference, _ = self.sampler.transition(self.policy, x, step, conditioning)
        return objective.gaussian_kl(mean, reference, std)

    def _check_first_pass(self, statistics: PassStatistics) -> None:
        """Stop when the policy that is trained is not the one that drew the samples."""
        tolerance = RATIO_TOLERANCE[self.precision]
        if not statistics.deviation <= tolerance:
            raise UserError(
                f"an iteration's first pass must have ratio 1, but deviates by {statistics.deviation:.2e} "
                f"(limit {tolerance:.0e}): rollout and training do not compute the same transition",
                "Set train.micro_batch_size equal to rollout.batch_size, or model.precision=fp32.",
            )

    def _skip(self, report: UpdateReport) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        report.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.train.max_nonfinite_steps:
            raise UserError(
                f"{self.skipped_in_a_row} updates in a row had a non-finite loss or gradient",
                "Lower train.learning_rate, or set model.precision=fp32; the last checkpoint is intact.",
            )

    def _average(self) -> None:
        if self.average is not None:
            assert self.train.ema_decay is not None
            with torch.no_grad():
                for average, parameter in zip(self.average, self.parameters, strict=True):
                    average.lerp_(parameter, 1 - self.train.ema_decay)
