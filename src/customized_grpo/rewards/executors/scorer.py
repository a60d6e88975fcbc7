"""All rewards of a run, each in its executor, behind three calls: submit, collect, close."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor

from customized_grpo.algorithms import advantages as adv
from customized_grpo.kinds import kinds_of
from customized_grpo.pixels import to_uint8
from customized_grpo.rewards.base import Reward, RewardError, ScoringBatch, as_scores
from customized_grpo.rewards.executors.inline import InlineExecutor
from customized_grpo.rewards.executors.interface import Executor

OnFailure = Literal["stop", "drop"]
POLL_S = 0.2  # between two calls of `on_wait`


class Scorer:
    """K rewards and their weights, asked about batches of images.

    Images, references and masks are rounded to 8 bits here, once, as in a saved PNG. So the reward of
    every executor sees the same numbers, and gives the same scores bit for bit on the same machine.

    Args:
        rewards: The rewards where they run.
        on_failure: For each of them: "stop" raises when it fails, "drop" makes the scores of that batch NaN.
            A `UserError` of a reward (such as a missing mask) always raises: dropping would hide it.
        weights: For each of them its share among the rewards of its kind; None: equal shares.
    """

    def __init__(
        self,
        rewards: Sequence[Executor],
        on_failure: Sequence[OnFailure],
        weights: Sequence[float] | None = None,
    ) -> None:
        if not rewards:
            raise ValueError("no rewards")
        if len(on_failure) != len(rewards):
            raise ValueError(f"{len(on_failure)} on_failure for {len(rewards)} rewards")
        if weights is not None and len(weights) != len(rewards):
            raise ValueError(f"{len(weights)} weights for {len(rewards)} rewards")
        self.rewards = tuple(rewards)
        self.on_failure = tuple(on_failure)
        self.weights = (1.0,) * len(rewards) if weights is None else tuple(weights)
        self._pending: list[tuple[ScoringBatch, list[Future[Tensor]]]] = []
        self._dropped: list[str] = []

    @classmethod
    def inline(cls, rewards: Sequence[Reward]) -> Scorer:
        """Return a scorer of rewards that run in this process, each of which stops the run when it fails."""
        return cls([InlineExecutor(reward) for reward in rewards], ["stop"] * len(rewards))

    def submit(self, batch: ScoringBatch) -> None:
        """Begin to score a batch; returns at once unless a reward runs inline."""
        batch = in_8_bits(batch)
        # All are asked before any is waited for: rewards in threads and elsewhere run side by side.
        self._pending.append((batch, [reward.submit(batch) for reward in self.rewards]))

    def collect(self, on_wait: Callable[[], None] = lambda: None) -> Tensor:
        """Wait for everything submitted.

        Args:
            on_wait: Called several times a second while waiting; may raise, which gives the batches up.

        Returns:
            Scores [N, K] of the N samples submitted since the last call, in their order, as `score_all` gives
            them.

        Raises:
            UserError: A reward refused a batch, for a reason that the user can fix.
            RewardError: A reward with "stop" failed; names it and the samples.
        """
        pending = self._pending
        self._pending = []
        futures: list[Future[Tensor]] = []
        for _, columns in pending:
            futures += columns
        try:
            while wait(futures, timeout=POLL_S).not_done:
                on_wait()
        finally:
            for future in futures:
                # no effect on those that are done
                future.cancel()
        parts = []
        for batch, columns in pending:
            parts.append(as_scores([self._column(k, future, batch) for k, future in enumerate(columns)]))
        return torch.cat(parts) if parts else torch.empty(0, len(self.rewards))

    def score(self, batch: ScoringBatch) -> Tensor:
        """Submit one batch and collect it: scores [B, K]."""
        if self._pending:
            raise ValueError("collect what was submitted first")
        self.submit(batch)
        return self.collect()

    def by_kind(self, scores: Tensor) -> dict[str, Tensor]:
        """Return scores [N, K] reduced to one column [N] per kind: the weighted mean of its rewards.

        Only kinds that have a reward are there, in the order of `kinds.KINDS`. A NaN among a sample's
        scores of one kind makes that mean NaN, and leaves the other kinds alone.
        """
        kinds = [reward.kind for reward in self.rewards]
        means = adv.by_kind(scores, kinds, self.weights)
        return dict(zip(kinds_of(kinds), means.unbind(1), strict=True))

    def by_name(self, scores: Tensor) -> dict[str, Tensor]:
        """Return scores [N, K] as one column [N] per reward, by its name."""
        return dict(zip([reward.name for reward in self.rewards], scores.unbind(1), strict=True))

    def take_dropped(self) -> list[str]:
        """Return the messages of the failures dropped since the last call, for the run's log."""
        dropped = self._dropped
        self._dropped = []
        return dropped

    def fingerprints(self) -> list[dict[str, Any]]:
        """Return the fingerprint of every reward; the same wherever they run."""
        return [reward.fingerprint() for reward in self.rewards]

    def close(self) -> None:
        """End every thread, actor and connection; a Ray cluster started by the first reward ends last."""
        for reward in reversed(self.rewards):
            reward.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _column(self, k: int, future: Future[Tensor], batch: ScoringBatch) -> Tensor:
        try:
            return future.result()
        except RewardError as error:
            if self.on_failure[k] == "stop":
                raise
            self._dropped.append(str(error))
            # NaN is "could not be scored": the samples are left out of training, and the log says why.
            return torch.full((len(batch),), float("nan"))


def in_8_bits(batch: ScoringBatch) -> ScoringBatch:
    """Return the batch with every image and mask rounded to multiples of 1/255."""
    return batch.map_images(lambda images: to_uint8(images).float() / 255)
