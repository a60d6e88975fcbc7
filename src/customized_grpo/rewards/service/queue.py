"""The queue of requests to one reward: first come, first served, one thread for each copy of the reward."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from customized_grpo.rewards.base import Reward, ScoringBatch, checked_scores

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Job:
    batch: ScoringBatch
    scores: Future[Tensor]


class RequestQueue:
    """Requests that wait for one reward, and the threads that score them.

    Requests are scored one by one, so that a score never depends on the requests of others. With `merge`, as
    many as fit are scored together: faster for small requests, but matrix products of another size round
    differently (by about 1e-7 in fp32).

    Args:
        copies: The reward, once for each thread.
        merge: Samples of several requests that may be scored together; 0 merges none.
    """

    def __init__(self, copies: Sequence[Reward], merge: int) -> None:
        self.reward = copies[0]
        self.merge = merge
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, args=(copy,), name=f"reward {copy.name}") for copy in copies
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, batch: ScoringBatch) -> Future[Tensor]:
        """Queue a batch; the future holds its scores [B], or raises as `checked_scores` does."""
        job = _Job(batch, Future())
        with self._changed:
            if self._closed:
                raise ValueError("the queue is closed")
            self._jobs.append(job)
            self._changed.notify()
        return job.scores

    def close(self) -> None:
        """Finish what is queued, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, reward: Reward) -> None:
        while True:
            taken = self._next()
            if not taken:
                return
            jobs = [job for job in taken if job.scores.set_running_or_notify_cancel()]
            if len(jobs) > 1 and _score_together(reward, jobs):
                continue
            for job in jobs:
                _score(reward, job)

    def _next(self) -> list[_Job]:
        """Wait for jobs and take the next ones; an empty list means that the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            taken = [self._jobs.popleft()] if self._jobs else []
            while self._jobs and self._fits(taken, self._jobs[0]):
                taken.append(self._jobs.popleft())
        return taken

    def _fits(self, taken: list[_Job], job: _Job) -> bool:
        samples = sum(len(other.batch) for other in taken) + len(job.batch)
        return samples <= self.merge and _shape(taken[0].batch) == _shape(job.batch)


def _shape(batch: ScoringBatch) -> tuple[object, ...]:
    """Return what two batches must have in common to be one."""
    return batch.images.shape[1:], batch.reference_masks is None, batch.image_masks is None


def _score(reward: Reward, job: _Job) -> None:
    try:
        job.scores.set_result(checked_scores(reward, job.batch))
    except Exception as error:
        job.scores.set_exception(error)


def _score_together(reward: Reward, jobs: list[_Job]) -> bool:
    """Score the jobs as one batch; return False if that failed, so that they are scored one by one."""
    try:
        scores = checked_scores(reward, _joined([job.batch for job in jobs]))
    except Exception:  # `_score` reports it to the request that it belongs to
        return False
    for job, part in zip(jobs, scores.split([len(job.batch) for job in jobs]), strict=True):
        job.scores.set_result(part)
    return True


def _joined(batches: list[ScoringBatch]) -> ScoringBatch:
    masks = [batch.reference_masks for batch in batches if batch.reference_masks is not None]
    image_masks = [batch.image_masks for batch in batches if batch.image_masks is not None]
    return ScoringBatch(
        images=torch.cat([batch.images for batch in batches]),
        prompts=_chained([batch.prompts for batch in batches]),
        references=_chained([batch.references for batch in batches]),
        reference_masks=_chained(masks) if masks else None,
        image_masks=torch.cat(image_masks) if image_masks else None,
        meta=_chained([batch.meta for batch in batches]),
    )


def _chained(rows: Sequence[list[Item]]) -> list[Item]:
    return list(itertools.chain.from_iterable(rows))
