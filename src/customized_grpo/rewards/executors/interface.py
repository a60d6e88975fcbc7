"""The interface of every executor."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol

from torch import Tensor

from customized_grpo.rewards.base import Kind, Reward, ScoringBatch


class Executor(Protocol):
    """One reward, and the place where it runs."""

    @property
    def name(self) -> str:
        """Name of the reward in metrics and messages."""
        ...

    @property
    def kind(self) -> Kind:
        """What the reward measures."""
        ...

    @property
    def groupwise(self) -> bool:
        """Whether the reward needs the whole group of one prompt in a batch."""
        ...

    @property
    def local_reward(self) -> Reward | None:
        """The reward itself, where it is an object of this process."""
        ...

    def submit(self, batch: ScoringBatch) -> Future[Tensor]:
        """Begin to score; the future holds fp32 [B] on the CPU, or raises as `checked_scores` does."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return the reward's own fingerprint, the same wherever it runs."""
        ...

    def close(self) -> None:
        """Cancel unfinished work and leave nothing running; a second call does nothing."""
        ...
