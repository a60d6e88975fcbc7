"""`inline`: the reward runs in the trainer's thread, which waits."""

from __future__ import annotations

from concurrent.futures import Future
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


class InlineExecutor:
    """Executor that scores inside `submit`.

    Args:
        reward: The reward.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward = reward

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
        """Score; the future is finished when it is returned."""
        done: Future[Tensor] = Future()
        try:
            done.set_result(checked_scores(self.reward, batch))
        except Exception as error:  # surfaces when it is collected, as with every other executor
            done.set_exception(error)
        return done

    def fingerprint(self) -> dict[str, Any]:
        """Return the reward's fingerprint."""
        return fingerprint_of(self.reward)

    def close(self) -> None:
        """Do nothing: nothing runs."""
