"""`thread`: the reward runs beside the trainer's next rollout batch, in the same process.

torch and Pillow release Python's lock while they compute, so this gains where the device or the cores have
room. The samples are still those of the current policy: all scores are collected before the update.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from customized_grpo.rewards.base import (
    Kind,
    Reward,
    ScoringBatch,
    checked_scores,
    fingerprint_of,
    is_groupwise,
)


class ThreadExecutor:
    """Scores batches in threads, in the order in which they were submitted.

    Args:
        reward: The reward; with several threads its `score` is called by several at once.
        threads: Number of batches that are scored at once.
        release: Called first by `close`, to end what the threads wait for.
    """

    def __init__(self, reward: Reward, threads: int = 1, release: Callable[[], None] = lambda: None) -> None:
        self.reward = reward
        self.release = release
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"reward {reward.name}")

    @property
    def name(self) -> str:
        """Name of the reward."""
        return self.reward.name

    @property
    def kind(self) -> Kind:
        """What the reward measures."""
        return self.reward.kind

    @property
    def groupwise(self) -> bool:
        """Whether the reward needs whole groups."""
        return is_groupwise(self.reward)

    @property
    def local_reward(self) -> Reward | None:
        """The reward itself."""
        return self.reward

    def submit(self, batch: ScoringBatch) -> Future[Tensor]:
        """Queue the batch and return at once."""
        return self._pool.submit(checked_scores, self.reward, batch)

    def fingerprint(self) -> dict[str, Any]:
        """Return the reward's fingerprint."""
        return fingerprint_of(self.reward)

    def close(self) -> None:
        """Drop the batches that wait, and return when those under way are done."""
        # First, as it ends what the threads may be waiting for.
        self.release()
        self._pool.shutdown(cancel_futures=True)
