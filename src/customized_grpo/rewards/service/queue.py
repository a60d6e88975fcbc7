"""The queue of requests to one reward: first come, first served, one thread for each copy of the reward.

A reward is somebody's code: it may raise anything, and it may never return. The first ends a request and not
the thread; the second is noticed by `watch`, which the service calls several times a second.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from customized_grpo.rewards.base import Reward, RewardError, ScoringBatch, checked_scores, is_groupwise

SCORE_S = 300.0


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
        score_s: Seconds after which a reward that has not answered counts as hanging.
    """

    def __init__(self, copies: Sequence[Reward], merge: int, score_s: float = SCORE_S) -> None:
        self.reward = copies[0]
        # a group is one request: another's images are none of its own
        self.merge = 0 if is_groupwise(copies[0]) else merge
        self.score_s = score_s
        self._under_way: dict[int, tuple[float, list[_Job]]] = {}  # by copy: when it began, and what
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            # daemons, because a reward that hangs must not keep the process from ending
            threading.Thread(target=self._work, args=(n, copy), name=f"reward {copy.name}", daemon=True)
            for n, copy in enumerate(copies)
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

    def watch(self) -> str | None:
        """Fail the requests that a hanging reward was asked; return what is wrong now, or None."""
        now = time.monotonic()
        with self._changed:
            hanging = [jobs for begun, jobs in self._under_way.values() if now - begun > self.score_s]
            lost = list(itertools.chain.from_iterable(hanging))
            if len(hanging) == len(self._threads):  # nobody is left to take those that wait
                lost += self._jobs
                self._jobs.clear()
        if not hanging:
            return None
        reason = f"reward {self.reward.name!r} has not answered for {self.score_s:g} s"
        for job in lost:
            _fail(job, RewardError(reason))
        return reason

    def close(self, patience_s: float | None = None) -> bool:
        """Finish what is queued, then end the threads; return whether they have ended.

        Args:
            patience_s: Longest wait, in seconds; None: as long as it takes.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        end = None if patience_s is None else time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, number: int, reward: Reward) -> None:
        while True:
            taken = self._next()
            if not taken:
                return
            # A client that went away has cancelled its future; nobody waits for those scores.
            jobs = [job for job in taken if job.scores.set_running_or_notify_cancel()]
            with self._changed:
                self._under_way[number] = time.monotonic(), jobs
            if len(jobs) < 2 or not _score_together(reward, jobs):
                for job in jobs:
                    _score(reward, job)
            with self._changed:
                del self._under_way[number]

    def _next(self) -> list[_Job]:
        """Wait for jobs and take the next ones; an empty list means that the queue is closed."""
        with self._changed:
            # Also when it is closed: what is queued by then is still scored.
            self._changed.wait_for(lambda: self._jobs or self._closed)
            # In order of arrival: a large request is never passed over for ever by small ones that fit.
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
        scores = checked_scores(reward, job.batch)
    except Exception as error:
        _fail(job, error)
    except BaseException as error:  # SystemExit and the like are for a main thread, which this is not
        wrapped = RewardError(f"reward {reward.name!r} raised {type(error).__name__}")
        wrapped.__cause__ = error
        _fail(job, wrapped)
    else:
        _finish(job, scores)


def _score_together(reward: Reward, jobs: list[_Job]) -> bool:
    """Score the jobs as one batch; return False if that failed, so that they are scored one by one."""
    try:
        scores = checked_scores(reward, ScoringBatch.join([job.batch for job in jobs]))
    except BaseException:  # `_score` reports it to the request that it belongs to
        return False
    # rows of the joined batch -> rows of each request
    for job, part in zip(jobs, scores.split([len(job.batch) for job in jobs]), strict=True):
        _finish(job, part)
    return True


def _finish(job: _Job, scores: Tensor) -> None:
    with suppress(InvalidStateError):  # it took too long, and its request was told so
        job.scores.set_result(scores)


def _fail(job: _Job, error: Exception) -> None:
    with suppress(InvalidStateError):
        job.scores.set_exception(error)
