"""A reward under the name that the recipe gives it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from torch import Tensor

from customized_grpo.rewards.base import Kind, Reward, ScoringBatch
from customized_grpo.rewards.executors.interface import Executor


class LabelledExecutor:
    """Another executor under another name.

    Args:
        executor: Where the reward runs.
        label: Its name in metrics and reports.
    """

    def __init__(self, executor: Executor, label: str) -> None:
        self.executor = executor
        self.name = label

    @property
    def kind(self) -> Kind:
        """What the reward measures."""
        return self.executor.kind

    @property
    def groupwise(self) -> bool:
        """Whether the reward needs whole groups."""
        return self.executor.groupwise

    @property
    def local_reward(self) -> Reward | None:
        """The other's reward."""
        return self.executor.local_reward

    def submit(self, batch: ScoringBatch) -> Future[Tensor]:
        """Begin to score, as the other does."""
        return self.executor.submit(batch)

    def fingerprint(self) -> dict[str, Any]:
        """Return the reward's own fingerprint: a name changes no score."""
        return self.executor.fingerprint()

    def close(self) -> None:
        """Close the other."""
        self.executor.close()
