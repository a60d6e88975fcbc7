"""What the losses of all algorithms have in common: whole groups are cut into terms, advantages stay apart.

The two advantages of a sample stay apart, [N, (prompt, identity)], until here: at each place that is trained,
a denoising step (GRPO) or a noise level (NFT, AWM), the recipe's rule combines them with the weights of that
very place (`LearningSignal.weighted`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor

from customized_grpo.rollout.batches import sample_batches

if TYPE_CHECKING:
    from customized_grpo.algorithms.rules import Rule
    from customized_grpo.config import Config
    from customized_grpo.engine.partition import Partition
    from customized_grpo.policies.conditioning import Conditioning
    from customized_grpo.policies.policy import Policy
    from customized_grpo.training.signal import LearningSignal


class Samples(Protocol):
    """The samples of an iteration of this process, N = P x G in whole groups, as the loop sees them."""

    @property
    def conditionings(self) -> Sequence[Conditioning]:
        """Return the conditioning of each prompt [P]."""

    @property
    def buckets(self) -> Sequence[Hashable]:
        """Return the bucket of each prompt [P]; only samples of one bucket can be in one model call."""

    @property
    def group_size(self) -> int:
        """Return G."""

    @property
    def images(self) -> Tensor:
        """Return the decoded samples [N, 3, H, W] in [0, 1]."""

    @property
    def n_trained(self) -> int:
        """Return the number of places at which every sample is trained."""

    def replace_groups(self, places: Sequence[int], others: Any) -> None:
        """Put the groups of other samples, of the same class, in the places of some of these."""

    def release(self) -> None:
        """Free what only the updates of the iteration needed."""


S = TypeVar("S", bound=Samples)


@dataclass(frozen=True)
class LossTerm:
    """The part of an update's loss that comes from one micro-batch at one trained place.

    Attributes:
        loss: Scalar with gradient; the terms of all processes add up to the update's loss.
        n_valid: Samples that count.
        ratio: Ratios of the new to the old policy [B], detached, 1 where a sample does not count; None for an
            algorithm without ratios.
        clip_fraction: Share of the valid samples whose gradient the clip has stopped; None likewise.
        kl: Mean KL to the reference model over the micro-batch's valid samples; NaN without a KL penalty,
            which alone measures it.
    """

    loss: Tensor
    n_valid: int
    ratio: Tensor | None
    clip_fraction: float | None
    kl: float


@dataclass(frozen=True)
class MicroBatch:
    """B samples that are trained together at one place.

    Attributes:
        place: Number of the place among the trained ones.
        samples: The B samples, a range of this process's.
        advantage: Their combined advantages [B].
        valid: Boolean [B]; the others count for nothing.
        n_terms: Valid samples of all processes in this update, times trained places.
    """

    place: int
    samples: slice
    advantage: Tensor
    valid: Tensor
    n_terms: int


class Loss(ABC, Generic[S]):
    """Computes the loss of an update; changes nothing.

    Args:
        config: The recipe.
        policy: The policy that is trained.
        partition: How an iteration's samples are partitioned over processes.

    Attributes:
        first_ratio_is_1: Whether the ratios of an iteration's first pass must be 1.
    """

    first_ratio_is_1: ClassVar[bool] = False

    def __init__(self, config: Config, policy: Policy, partition: Partition) -> None:
        self.train = config.train
        self.policy = policy
        self.partition = partition
        self.rule: Rule = config.advantage.build()
        self.advantage_clip = config.advantage.clip

    def terms(self, samples: S, signal: LearningSignal, update: int) -> Iterator[LossTerm]:
        """Yield the terms of this process's samples in one update, trained place after trained place.

        Args:
            samples: This process's samples, those of one update in a row.
            signal: Learning signal of the samples of all processes, in the iteration's order.
            update: Number of the update within its pass over the iteration.
        """
        # samples of the iteration -> samples of this update, those of all processes
        n_update = len(signal.valid) // self.train.updates_per_iteration
        of_update = signal.rows(slice(update * n_update, (update + 1) * n_update))
        # The mean is over all processes, so that they need not have equally many valid samples.
        n_terms = int(of_update.valid.sum()) * samples.n_trained
        # No process has a valid sample, so all of them return here and none waits.
        if n_terms == 0:
            return
        # -> this process's samples of the update, which has two names: `own` among those of all processes,
        # `own_samples` in `samples`, where only this process's are, update after update
        own = self.partition.own_rows(n_update)
        n_own = own.stop - own.start
        own_samples = slice(update * n_own, (update + 1) * n_own)
        valid = of_update.valid[own]
        for place in range(samples.n_trained):
            # of the samples of all processes: a rule may take statistics over them
            weight = self._prompt_weight(samples, of_update, place)
            advantage = of_update.weighted(weight, self.rule, samples.group_size, self.advantage_clip)[own]
            for micro_batch in sample_batches(
                samples.buckets, samples.group_size, own_samples, self.train.micro_batch_size
            ):
                # -> the micro-batch, counted from this process's first sample of the update
                within = slice(micro_batch.start - own_samples.start, micro_batch.stop - own_samples.start)
                yield self._term(
                    samples, MicroBatch(place, micro_batch, advantage[within], valid[within], n_terms)
                )

    @abstractmethod
    def _prompt_weight(self, samples: S, signal: LearningSignal, place: int) -> Tensor:
        """Return the prompt weight [] of a trained place."""

    @abstractmethod
    def _term(self, samples: S, batch: MicroBatch) -> LossTerm:
        """Return the term of a micro-batch."""
