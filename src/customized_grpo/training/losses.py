"""The loss of an update: from a trajectory and its learning signal to terms that can be differentiated.

The two advantages of a sample stay apart, [N, (prompt, identity)], until here: at each trained step the
recipe's rule combines them with the weights of that true step (`LearningSignal.combined`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from customized_grpo.algorithms import objective, samplers
from customized_grpo.rollout.batches import sample_batches, sample_conditioning

if TYPE_CHECKING:
    from customized_grpo.algorithms.rules import Rule
    from customized_grpo.config import Config
    from customized_grpo.engine.partition import Partition
    from customized_grpo.policies.policy import Policy
    from customized_grpo.rollout.sampler import Sampler
    from customized_grpo.rollout.trajectory import Trajectory
    from customized_grpo.training.signal import LearningSignal


@dataclass(frozen=True)
class LossTerm:
    """The part of an update's loss that comes from one micro-batch at one trained step.

    Attributes:
        loss: Scalar with gradient; the terms of all processes add up to the update's loss.
        policy: The clipped policy loss in it, with its ratios and counts.
        kl: Mean KL to the reference model over the micro-batch's valid samples; NaN without a KL penalty,
            which alone measures it.
    """

    loss: Tensor
    policy: objective.PolicyLoss
    kl: float


class UpdateLoss:
    """Computes the loss of an update; changes nothing.

    Args:
        config: The recipe.
        policy: The policy that is trained.
        sampler: The sampler that drew the trajectories: the same transitions are evaluated again.
        partition: How an iteration's samples are partitioned over processes.
    """

    def __init__(self, config: Config, policy: Policy, sampler: Sampler, partition: Partition) -> None:
        self.train = config.train
        self.policy = policy
        self.kl_reference = policy.start if config.train.kl_reference == "start" else policy.reference
        self.sampler = sampler
        self.partition = partition
        self.rule: Rule = config.advantage.build()
        self.advantage_clip = config.advantage.clip

    def terms(self, trajectory: Trajectory, signal: LearningSignal, update: int) -> Iterator[LossTerm]:
        """Yield the terms of this process's samples in one update, trained step after trained step.

        Args:
            trajectory: This process's samples, those of one update in a row.
            signal: Learning signal of the samples of all processes, in the iteration's order.
            update: Number of the update within its pass over the iteration.
        """
        # samples of the iteration -> samples of this update, those of all processes
        n_update = len(signal.valid) // self.train.updates_per_iteration
        of_update = signal.rows(slice(update * n_update, (update + 1) * n_update))
        # The mean is over all processes, so that they need not have equally many valid samples.
        n_terms = int(of_update.valid.sum()) * len(trajectory.steps)
        if n_terms == 0:
            return
        # -> this process's samples of the update, which has two names: `own` among those of all processes,
        # `own_samples` in the trajectory, where only this process's are, update after update
        own = self.partition.own_rows(n_update)
        n_own = own.stop - own.start
        own_samples = slice(update * n_own, (update + 1) * n_own)
        valid = of_update.valid[own]
        for k, step in enumerate(trajectory.steps):  # k-th trained step; the weights are those of true `step`
            advantage = self._advantage(of_update, step, trajectory.group_size)[own]
            for micro_batch in sample_batches(
                trajectory.buckets, trajectory.group_size, own_samples, self.train.micro_batch_size
            ):
                # -> the micro-batch, counted from this process's first sample of the update
                within = slice(micro_batch.start - own_samples.start, micro_batch.stop - own_samples.start)
                yield self._term(trajectory, k, micro_batch, advantage[within], valid[within], n_terms)

    def _advantage(self, signal: LearningSignal, step: int, group_size: int) -> Tensor:
        """Return the combined advantage [n] of an update's samples at a true step.

        Of the samples of all processes: a rule may take statistics over them.
        """
        return signal.combined(step, self.rule, group_size, self.advantage_clip)

    def _term(
        self,
        trajectory: Trajectory,
        k: int,
        micro_batch: slice,
        advantage: Tensor,
        valid: Tensor,
        n_terms: int,
    ) -> LossTerm:
        """Return the term of B samples at the k-th trained step.

        Args:
            trajectory: This process's samples.
            k: Place of the step among the trained ones.
            micro_batch: The B samples, a range of the trajectory's.
            advantage: Their combined advantages [B].
            valid: Boolean [B]; the others count for nothing.
            n_terms: Valid samples of all processes in this update, times trained steps.
        """
        step = trajectory.steps[k]
        conditioning = sample_conditioning(trajectory.conditionings, trajectory.group_size, micro_batch)
        x = trajectory.x[k, micro_batch]
        x_next = trajectory.x_next[k, micro_batch]
        old_log_prob = trajectory.log_prob[k, micro_batch]
        # The rollout's own transition, or the same again: for unchanged parameters the ratio is 1.
        graph = trajectory.graphs.pop((step, micro_batch.start, micro_batch.stop), None)
        mean, std = graph or self.sampler.transition(self.policy, x, step, conditioning)
        log_prob = samplers.log_prob(x_next, mean, std)
        scale = 1.0
        if trajectory.mean is not None:  # GRPO-Guard: ratios and gradients on one scale over all steps
            old_mean = trajectory.mean[k, micro_batch]
            log_prob = objective.normalised_log_ratio(log_prob, old_log_prob, mean, old_mean, std)
            old_log_prob = torch.zeros_like(old_log_prob)
            # 1 / D: without it steps of large D would pull harder (arXiv 2510.22319).
            scale = 1 / float(self.sampler.sigmas[step] - self.sampler.sigmas[step + 1])
        valid = valid.to(log_prob.device)
        result = objective.policy_loss(
            log_prob,
            old_log_prob,
            advantage.to(log_prob.device),
            self.train.clip_range,
            valid=valid,
            total=n_terms,
        )
        loss = result.loss * scale
        kl = math.nan
        if self.train.kl_weight:
            with torch.no_grad(), self.kl_reference():
                base_mean, _ = self.sampler.transition(self.policy, x, step, conditioning)
            # The reference's transition from the same x: one step apart, not one trajectory.
            divergence = objective.gaussian_kl(mean, base_mean, std)[valid].sum() / n_terms
            loss = loss + self.train.kl_weight * divergence
            # From a share of the update's sum to the mean over this micro-batch, for the log.
            kl = float(divergence.detach()) * n_terms / max(1, int(valid.sum()))
        return LossTerm(loss, result, kl)
