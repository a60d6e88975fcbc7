"""GRPO's loss of an update: from a trajectory and its learning signal to terms that can be differentiated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from customized_grpo.algorithms import objective, samplers
from customized_grpo.rollout.batches import sample_conditioning
from customized_grpo.rollout.trajectory import Trajectory
from customized_grpo.training.loss_terms import Loss, LossTerm, MicroBatch

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.engine.partition import Partition
    from customized_grpo.policies.policy import Policy
    from customized_grpo.rollout.sampler import Sampler
    from customized_grpo.training.signal import LearningSignal


class UpdateLoss(Loss[Trajectory]):
    """Computes GRPO's loss of an update; changes nothing.

    Args:
        config: The recipe.
        policy: The policy that is trained.
        sampler: The sampler that drew the trajectories: the same transitions are evaluated again.
        partition: How an iteration's samples are partitioned over processes.
    """

    first_ratio_is_1 = True

    def __init__(self, config: Config, policy: Policy, sampler: Sampler, partition: Partition) -> None:
        super().__init__(config, policy, partition)
        self.kl_reference = policy.start if config.train.kl_reference == "start" else policy.reference
        self.sampler = sampler

    def _prompt_weight(self, samples: Trajectory, signal: LearningSignal, place: int) -> Tensor:
        # By the true step, whatever its place among the trained ones.
        return signal.weights[samples.steps[place]]

    def _term(self, samples: Trajectory, batch: MicroBatch) -> LossTerm:
        """Return the term of B samples at a trained step."""
        trajectory = samples
        k = batch.place
        micro_batch = batch.samples
        n_terms = batch.n_terms
        step = trajectory.steps[k]
        conditioning = sample_conditioning(trajectory.conditionings, trajectory.group_size, micro_batch)
        x = trajectory.x[k, micro_batch]
        x_next = trajectory.x_next[k, micro_batch]
        old_log_prob = trajectory.log_prob[k, micro_batch]
        # The rollout's own transition, or the same again: for unchanged parameters the ratio is 1.
        # Taken out: a graph serves one backward pass, and its memory is free afterwards.
        graph = trajectory.graphs.pop((step, micro_batch.start, micro_batch.stop), None)
        mean, std = graph or self.sampler.transition(self.policy, x, step, conditioning)
        log_prob = samplers.log_prob(x_next, mean, std)
        scale = 1.0
        if trajectory.mean is not None:  # GRPO-Guard: ratios and gradients on one scale over all steps
            old_mean = trajectory.mean[k, micro_batch]
            log_prob = objective.normalised_log_ratio(log_prob, old_log_prob, mean, old_mean, std)
            # The normalised value is a log-ratio already.
            old_log_prob = torch.zeros_like(old_log_prob)
            # 1 / D: without it steps of large D would pull harder (arXiv 2510.22319).
            scale = 1 / float(self.sampler.sigmas[step] - self.sampler.sigmas[step + 1])
        valid = batch.valid.to(log_prob.device)
        result = objective.policy_loss(
            log_prob,
            old_log_prob,
            batch.advantage.to(log_prob.device),
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
        return LossTerm(loss, int(result.n_valid), result.ratio, float(result.clip_fraction), kl)
