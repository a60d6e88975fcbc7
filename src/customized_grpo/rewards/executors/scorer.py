"""All rewards of a run, each in its executor, behind three calls: submit, collect, close."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor

from customized_grpo.algorithms import advantages as adv
from customized_grpo.kinds import kinds_of
from customized_grpo.pixels import to_uint8
from customized_grpo.rewards.base import (
    NOT_ASKED,
    Reward,
    RewardError,
    ScoringBatch,
    is_asked,
    is_asked_by_any,
)
from customized_grpo.rewards.executors.inline import InlineExecutor
from customized_grpo.rewards.executors.interface import Executor
from customized_grpo.rewards.segmenter import TextSegmenter

OnFailure = Literal["stop", "drop"]
POLL_S = 0.2  # between two calls of `on_wait`


@dataclass(frozen=True)
class _Question:
    """What one reward was asked at a time.

    Attributes:
        batch: The samples that it scores.
        rows: Their places among all samples.
        n_samples: Number of all samples.
        future: Its scores; None where it has none to score.
    """

    batch: ScoringBatch
    rows: list[int]
    n_samples: int
    future: Future[Tensor] | None


class Scorer:
    """K rewards and their weights, asked about batches of images.

    Images, references and masks are rounded to 8 bits here, once, as in a saved PNG. So the reward of
    every executor sees the same numbers, and gives the same scores bit for bit on the same machine.

    Args:
        rewards: The rewards where they run.
        on_failure: For each of them: "stop" raises when it fails, "drop" makes the scores of that batch NaN.
            A `UserError` of a reward (such as a missing mask) always raises: dropping would hide it.
        weights: For each of them its share among the rewards of its kind; None: equal shares.
        segmenter: Makes the masks of the images; None: they have none.
        segmented: For each of them whether it needs these masks; None: all do.
    """

    def __init__(
        self,
        rewards: Sequence[Executor],
        on_failure: Sequence[OnFailure],
        weights: Sequence[float] | None = None,
        segmenter: TextSegmenter | None = None,
        segmented: Sequence[bool] | None = None,
    ) -> None:
        if not rewards:
            raise ValueError("no rewards")
        if len(on_failure) != len(rewards):
            raise ValueError(f"{len(on_failure)} on_failure for {len(rewards)} rewards")
        if weights is not None and len(weights) != len(rewards):
            raise ValueError(f"{len(weights)} weights for {len(rewards)} rewards")
        self.rewards = tuple(rewards)
        self.on_failure = tuple(on_failure)
        self.segmenter = segmenter
        self._segmented = (True,) * len(rewards) if segmented is None else tuple(segmented)
        self.weights = (1.0,) * len(rewards) if weights is None else tuple(weights)
        self._pending = self._nothing_pending()
        self._open: ScoringBatch | None = None  # of a group whose other images are not there yet
        self._dropped: list[str] = []

    @classmethod
    def inline(cls, rewards: Sequence[Reward]) -> Scorer:
        """Return a scorer of rewards that run in this process, each of which stops the run when it fails."""
        return cls([InlineExecutor(reward) for reward in rewards], ["stop"] * len(rewards))

    def submit(self, batch: ScoringBatch, group_size: int = 1) -> None:
        """Begin to score a batch; returns at once unless a reward runs inline.

        Args:
            batch: Samples; those of a group follow each other, and may come in several batches.
            group_size: Samples of a group, for rewards that need it whole.
        """
        batch = in_8_bits(batch)
        if self.segmenter is not None:
            names = [r.name for r, looks in zip(self.rewards, self._segmented, strict=True) if looks]
            wanted = [is_asked_by_any(names, meta) for meta in batch.meta]
            batch = self.segmenter.with_masks(batch, wanted)
        # All are asked before any is waited for: rewards in threads and elsewhere run side by side.
        for k, reward in enumerate(self.rewards):
            if not reward.groupwise:
                self._ask(k, batch)
        if any(reward.groupwise for reward in self.rewards):
            self._ask_about_whole_groups(batch, group_size)

    def _ask_about_whole_groups(self, batch: ScoringBatch, group_size: int) -> None:
        samples = batch if self._open is None else ScoringBatch.join([self._open, batch])
        # The rest is kept: a batch of the rollout may end within a group.
        n_whole = len(samples) // group_size * group_size
        for start in range(0, n_whole, group_size):
            group = samples.select(range(start, start + group_size))
            for k, reward in enumerate(self.rewards):
                if reward.groupwise:
                    self._ask(k, group)
        self._open = samples.select(range(n_whole, len(samples))) if n_whole < len(samples) else None

    def _ask(self, k: int, batch: ScoringBatch) -> None:
        """Ask a reward about those samples of a batch whose rows chose it."""
        reward = self.rewards[k]
        # rows of the batch that chose this reward; the others stay NOT_ASKED
        rows = [row for row, meta in enumerate(batch.meta) if is_asked(reward.name, meta)]
        if len(rows) < len(batch):
            n_samples = len(batch)
            batch = batch.select(rows)
        else:
            n_samples = len(rows)
        future = reward.submit(batch) if rows else None
        self._pending[k].append(_Question(batch, rows, n_samples, future))

    def _nothing_pending(self) -> list[list[_Question]]:
        """Return no questions for each of the K rewards."""
        return [[] for _ in self.rewards]

    def collect(self, on_wait: Callable[[], None] = lambda: None) -> Tensor:
        """Wait for everything submitted.

        Args:
            on_wait: Called several times a second while waiting; may raise, which gives the batches up.

        Returns:
            Scores [N, K] of the N samples submitted since the last call, in their order, as `score_all` gives
            them; NOT_ASKED where the sample's row did not choose the reward.

        Raises:
            UserError: A reward refused a batch, for a reason that the user can fix.
            RewardError: A reward with "stop" failed; names it and the samples.
            ValueError: The last group is not whole, and a reward needs it.
        """
        # Taken out first: after an error nothing of this iteration is left for the next one.
        pending = self._pending
        self._pending = self._nothing_pending()
        unfinished = self._open
        self._open = None
        futures: list[Future[Tensor]] = []
        for questions in pending:
            futures += [question.future for question in questions if question.future is not None]
        try:
            while wait(futures, timeout=POLL_S).not_done:
                on_wait()
        finally:
            for future in futures:
                # no effect on those that are done
                future.cancel()
        if unfinished is not None:
            raise ValueError(f"{len(unfinished)} samples at the end are no whole group")
        if not any(pending):
            return torch.empty(0, len(self.rewards))
        columns = []
        for k, questions in enumerate(pending):
            columns.append(torch.cat([self._column(k, question) for question in questions]))
        return torch.stack(columns, dim=1)

    def score(self, batch: ScoringBatch, group_size: int = 1) -> Tensor:
        """Submit one batch and collect it: scores [B, K]."""
        if any(self._pending) or self._open is not None:
            raise ValueError("collect what was submitted first")
        self.submit(batch, group_size)
        return self.collect()

    def by_kind(self, scores: Tensor) -> dict[str, Tensor]:
        """Return scores [N, K] reduced to one column [N] per kind: the weighted mean of its rewards.

        Only kinds that have a reward are there, in the order of `kinds.KINDS`. A NaN among a sample's
        scores of one kind makes that mean NaN, and leaves the other kinds alone. It is over the rewards that
        the sample's row chose; NaN where that is none.
        """
        kinds = [reward.kind for reward in self.rewards]
        asked = scores != NOT_ASKED
        means = adv.by_kind(scores, kinds, self.weights, None if bool(asked.all()) else asked)
        return dict(zip(kinds_of(kinds), means.unbind(1), strict=True))

    def by_name(self, scores: Tensor) -> dict[str, Tensor]:
        """Return scores [N, K] as one column [N] per reward, by its name; NaN where it was not asked."""
        scores = scores.masked_fill(scores == NOT_ASKED, float("nan"))
        return dict(zip([reward.name for reward in self.rewards], scores.unbind(1), strict=True))

    def take_dropped(self) -> list[str]:
        """Return the messages of the failures dropped since the last call, for the run's log."""
        dropped = self._dropped
        self._dropped = []
        return dropped

    def fingerprints(self) -> list[dict[str, Any]]:
        """Return the fingerprint of every reward; the same wherever they run."""
        fingerprints = [reward.fingerprint() for reward in self.rewards]
        if self.segmenter is None:
            return fingerprints
        masks = self.segmenter.fingerprint()
        # of those alone whose scores depend on it
        described = []
        for one in fingerprints:
            depends = one.get("segment") == "both" or one.get("match")
            described.append(one | {"masks": masks} if depends else one)
        return described

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

    def _column(self, k: int, question: _Question) -> Tensor:
        """Return the scores of all samples of a question."""
        column = torch.full((question.n_samples,), NOT_ASKED)
        if question.future is not None:
            answer = self._answer(k, question.future, question.batch)
            # An infinite score would be taken for NOT_ASKED.
            column[question.rows] = answer.masked_fill(answer.isinf(), float("nan"))
        return column

    def _answer(self, k: int, future: Future[Tensor], batch: ScoringBatch) -> Tensor:
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
