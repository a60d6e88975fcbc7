"""What an algorithm asks of the rollout and how it makes its loss: GRPO, NFT or AWM behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from torch import Tensor

from customized_grpo.algorithms.forward_process import draw_progress, levels_at
from customized_grpo.errors import UserError
from customized_grpo.rollout.clean_images import CleanSamples, collect_clean
from customized_grpo.rollout.collect import NoiseKey, collect
from customized_grpo.rollout.sampler import plan_iteration
from customized_grpo.rollout.trajectory import Trajectory
from customized_grpo.seeding import generator
from customized_grpo.training.forward_losses import AwmLoss, ForwardLoss, NftLoss
from customized_grpo.training.loss_terms import Loss, S
from customized_grpo.training.losses import UpdateLoss
from customized_grpo.training.old_policy import OldPolicy

if TYPE_CHECKING:
    from customized_grpo.data.examples import Example
    from customized_grpo.engine.partition import Partition
    from customized_grpo.policies.conditioning import Conditioning
    from customized_grpo.training.parts import Parts

OLD = "old"
"""Name of the old policy among the tensors of a checkpoint."""


@dataclass(frozen=True)
class Draw:
    """An iteration's rollout as the loop wants it; see `rollout.collect.collect`.

    Attributes:
        examples: Prompts of this process [P].
        iteration: Number of finished iterations.
        repeats: How often each example's row was drawn before it in this iteration [P]; None counts among
            the examples.
        keep_graphs: Decides whether trained steps keep their graphs.
        before_batch: Called before every batch; may raise to stop.
        on_batch: Called after every batch with its samples and their images.
    """

    examples: Sequence[Example]
    iteration: int
    repeats: Sequence[int] | None = None
    keep_graphs: Callable[[Sequence[Hashable], Sequence[Conditioning]], bool] = lambda buckets, given: False
    before_batch: Callable[[], None] = lambda: None
    on_batch: Callable[[slice, Tensor], None] = lambda samples, images: None


class Algorithm(ABC, Generic[S]):
    """An algorithm with the parts of a run.

    Args:
        parts: The run's parts.

    Attributes:
        loss: Its loss of an update.
    """

    loss: Loss[S]

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.config = parts.config

    @abstractmethod
    def draw(self, draw: Draw) -> S:
        """Draw a group of samples for each example."""

    def finish_iteration(self, iteration: int) -> None:
        """Do what follows an iteration's updates, given the number of finished iterations before it."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return what a checkpoint keeps besides adapter, average and optimizer: {entry: {name: tensor}}."""
        return {}

    def load(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over what `tensors` gave, from all entries of a checkpoint.

        Raises:
            UserError: It is not there, or not this recipe's.
        """

    def _noise_key(self, draw: Draw) -> NoiseKey:
        return NoiseKey(self.config.run.seed, draw.iteration)


class Grpo(Algorithm[Trajectory]):
    """GRPO on the steps of the rollout: it keeps the transitions that it trains."""

    def __init__(self, parts: Parts, partition: Partition) -> None:
        super().__init__(parts)
        self.loss = UpdateLoss(parts.config, parts.policy, parts.sampler, partition)

    def draw(self, draw: Draw) -> Trajectory:
        """Draw a group of samples for each example, with the transitions of the steps that are trained."""
        return collect(
            self.parts.policy,
            self.parts.sampler,
            draw.examples,
            self.config.rollout,
            encoder=self.parts.encoder,
            group_size=self.config.train.group_size,
            plan=plan_iteration(self.config, draw.iteration),
            noise_key=self._noise_key(draw),
            repeats=draw.repeats,
            keep_means=self.config.train.ratio_normalisation,
            keep_graphs=draw.keep_graphs,
            before_batch=draw.before_batch,
            on_batch=draw.on_batch,
        )


class ForwardProcess(Algorithm[CleanSamples]):
    """NFT or AWM: the old policy draws, only clean samples are kept, and they are trained at noise levels."""

    def __init__(self, parts: Parts, partition: Partition) -> None:
        super().__init__(parts)
        self.old = OldPolicy(parts.policy, parts.config.train.forward)
        losses: dict[str, type[ForwardLoss]] = {"nft": NftLoss, "awm": AwmLoss}
        loss = losses[parts.config.train.algorithm]
        self.loss = loss(parts.config, parts.policy, self.old, partition)

    def draw(self, draw: Draw) -> CleanSamples:
        """Draw a group of samples for each example with the old policy."""
        seed = self.config.run.seed
        # the same levels for all samples of the iteration: a group is compared at one weight of its rewards
        levels = generator(seed, "levels", draw.iteration)
        progress = draw_progress(self.config.train.forward.levels, levels)
        # NFT and AWM are off-policy by design: the trained adapter never draws.
        with self.old.in_place():
            return collect_clean(
                self.parts.policy,
                self.parts.sampler,
                draw.examples,
                self.config.rollout,
                encoder=self.parts.encoder,
                group_size=self.config.train.group_size,
                plan=plan_iteration(self.config, draw.iteration),
                progress=progress,
                sigmas=levels_at(progress, self.parts.sampler.sigmas),
                noise_key=self._noise_key(draw),
                repeats=draw.repeats,
                before_batch=draw.before_batch,
                on_batch=draw.on_batch,
            )

    def finish_iteration(self, iteration: int) -> None:
        """Move the old policy towards the trained one."""
        self.old.follow(iteration)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the old policy."""
        return {OLD: self.old.tensors()}

    def load(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore the old policy.

        Raises:
            UserError: The checkpoint has none, or that of another adapter.
        """
        if OLD not in entries:
            raise UserError(
                f"the checkpoint has no old policy, which {self.config.train.algorithm} needs",
                hint="It was saved by a run with train.algorithm=grpo: go on with that, or start a new run.",
            )
        self.old.load(entries[OLD])


def build_algorithm(parts: Parts, partition: Partition) -> Algorithm[Any]:
    """Return the recipe's algorithm.

    Args:
        parts: The run's parts.
        partition: How an iteration's samples are partitioned over processes.
    """
    if parts.config.train.algorithm == "grpo":
        return Grpo(parts, partition)
    return ForwardProcess(parts, partition)
