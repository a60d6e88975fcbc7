"""The losses of NFT and AWM: clean samples are noised again, and advantages meet at each noise level."""

from __future__ import annotations

import math
from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from customized_grpo.algorithms import forward_process, objective
from customized_grpo.algorithms.schedules import Schedule, prompt_weights_at
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.rollout.batches import sample_conditioning
from customized_grpo.rollout.clean_images import CleanSamples
from customized_grpo.training.loss_terms import Loss, LossTerm, MicroBatch

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.engine.partition import Partition
    from customized_grpo.policies.policy import Policy
    from customized_grpo.training.old_policy import OldPolicy
    from customized_grpo.training.signal import LearningSignal


@dataclass(frozen=True)
class Noised:
    """B samples at one noise level; all tensors [B, L, C].

    Attributes:
        sigma: The level.
        clean: x0.
        noise: What was added.
        x: The sum, x_s.
        conditioning: Of the samples.
        old_velocity: The old policy's velocity at x_s.
    """

    sigma: float
    clean: Tensor
    noise: Tensor
    x: Tensor
    conditioning: Conditioning
    old_velocity: Tensor


class ForwardLoss(Loss[CleanSamples]):
    """What the losses of NFT and AWM have in common; changes nothing.

    Args:
        config: The recipe.
        policy: The policy that is trained.
        old: The policy that drew the samples.
        partition: How an iteration's samples are partitioned over processes.
    """

    def __init__(self, config: Config, policy: Policy, old: OldPolicy, partition: Partition) -> None:
        super().__init__(config, policy, partition)
        self.old = old
        self.schedule: Schedule = config.schedule.build()
        self.n_steps = config.rollout.steps

    def _prompt_weight(self, samples: CleanSamples, signal: LearningSignal, place: int) -> Tensor:
        # A slice, to keep the dimension of levels.
        progress = samples.progress[place : place + 1]
        return prompt_weights_at(self.schedule, progress, self.n_steps, signal.schedule_seed)[0]

    def _term(self, samples: CleanSamples, batch: MicroBatch) -> LossTerm:
        """Return the term of B samples at a noise level."""
        noised = self._noised(samples, batch)
        velocity = self.policy.velocity(noised.x, noised.sigma, noised.conditioning)
        valid = batch.valid.to(velocity.device)
        advantage = batch.advantage.to(velocity.device)
        result = self._policy_term(noised, velocity, advantage, valid, batch.n_terms)
        if not self.train.kl_weight:
            return result
        reference = self._reference_velocity(noised)
        each = forward_process.velocity_divergence(velocity, reference)
        # Divided by the terms of the whole update, so that micro-batches add up to a mean.
        divergence = torch.where(valid, each, 0.0).sum() / batch.n_terms
        # from a share of the update's sum to the mean over this micro-batch, for the log
        kl = float(divergence.detach()) * batch.n_terms / max(1, result.n_valid)
        loss = result.loss + self.train.kl_weight * divergence
        return LossTerm(loss, result.n_valid, result.ratio, result.clip_fraction, kl)

    def _noised(self, samples: CleanSamples, batch: MicroBatch) -> Noised:
        """Return the micro-batch at its noise level, with the old policy's velocity there."""
        sigma = float(samples.sigmas[batch.place])
        conditioning = sample_conditioning(samples.conditionings, samples.group_size, batch.samples)
        clean = samples.clean[batch.samples]
        noise = samples.noise(self.policy, batch.place, batch.samples)
        x = forward_process.noised(clean, noise, sigma)
        # before the trained velocity: its graph must not wait while adapters are exchanged
        with self.old.in_place():
            old_velocity = self.policy.velocity(x, sigma, conditioning)
        return Noised(sigma, clean, noise, x, conditioning, old_velocity)

    def _reference_velocity(self, noised: Noised) -> Tensor:
        """Return the velocity [B, L, C] that the KL divergence is from."""
        if self.train.kl_reference == "old":
            return noised.old_velocity
        is_start = self.train.kl_reference == "start"
        reference: AbstractContextManager[None] = self.policy.start() if is_start else self.policy.reference()
        with torch.no_grad(), reference:
            return self.policy.velocity(noised.x, noised.sigma, noised.conditioning)

    @abstractmethod
    def _policy_term(
        self, noised: Noised, velocity: Tensor, advantage: Tensor, valid: Tensor, n_terms: int
    ) -> LossTerm:
        """Return the term without the KL penalty.

        Args:
            noised: The samples at their level.
            velocity: Of the policy that is trained [B, L, C].
            advantage: Combined at this level [B].
            valid: Boolean [B]; the others count for nothing.
            n_terms: Valid samples of all processes in this update, times levels.
        """


class NftLoss(ForwardLoss):
    """DiffusionNFT (arXiv 2509.16117): positive and negative targets; `advantage.clip` is its A_max."""

    def _policy_term(
        self, noised: Noised, velocity: Tensor, advantage: Tensor, valid: Tensor, n_terms: int
    ) -> LossTerm:
        each = forward_process.nft_loss(
            noised.x,
            noised.clean,
            noised.sigma,
            velocity,
            noised.old_velocity,
            advantage,
            beta=self.train.nft.beta,
            bound=self.advantage_clip,
        )
        # where, and not a product: NaN times 0 is NaN.
        loss = torch.where(valid, each, 0.0).sum() / n_terms
        return LossTerm(loss, int(valid.sum()), ratio=None, clip_fraction=None, kl=math.nan)


class AwmLoss(ForwardLoss):
    """AWM (arXiv 2509.25050): PPO's clipped loss, the flow-matching error as the log-probability."""

    def _policy_term(
        self, noised: Noised, velocity: Tensor, advantage: Tensor, valid: Tensor, n_terms: int
    ) -> LossTerm:
        weight = forward_process.LEVEL_WEIGHTS[self.train.awm.weighting](noised.sigma)
        log_probs = []
        for each in (velocity, noised.old_velocity):
            log_probs.append(forward_process.matching_log_prob(each, noised.clean, noised.noise, weight))
        result = objective.policy_loss(
            log_probs[0],
            log_probs[1],
            advantage,
            self.train.awm.clip_range,
            valid=valid,
            total=n_terms,
        )
        return LossTerm(
            result.loss, int(result.n_valid), result.ratio, float(result.clip_fraction), kl=math.nan
        )
