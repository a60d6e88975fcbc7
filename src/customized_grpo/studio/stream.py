"""Server-sent events: what is new in the list or in some runs, as long as the browser listens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from starlette.concurrency import run_in_threadpool

from customized_grpo.errors import UserError
from customized_grpo.links import leads_out
from customized_grpo.reporting.tail import MetricsTail
from customized_grpo.studio.library import Library, Run
from customized_grpo.studio.views import list_view, run_view

POLL_S = 0.3
"""Seconds between looks at the files of a run; the kernel would not tell of changes on a network drive."""

LIST_POLL_S = 1.0
"""Seconds between looks at all runs, for the list."""

QUIET_S = 15.0
"""Seconds without news after which a comment is sent, by which a connection that is gone is found."""

BATCH = 2000
"""Records in one message; the first of a long run come in several, so that the page can draw in between."""


class Follower(Protocol):
    """Something that a stream follows."""

    def news(self) -> list[str]:
        """Return the messages since the last call."""
        ...


class RunFollower:
    """The metrics and the state of one run.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        # its own place in the file: the list and other browsers read at their own pace
        self._tail = MetricsTail(run.tail.path)
        self._begun = False
        self._view = ""

    def news(self) -> list[str]:
        """Return the new records, and the run's entry of the list if it has changed."""
        self._run.look()
        messages = self._records()
        view = run_view(self._run).model_dump_json()
        if view != self._view:
            self._view = view
            messages.append(message("run", view))
        return messages

    def _records(self) -> list[str]:
        try:
            if leads_out(self._tail.path, self._run.folder):
                return []
            change = self._tail.read()
        except (UserError, OSError):  # the run's entry says what is wrong
            return []
        # The first message also says "restarted": the page then forgets what it had drawn.
        restarted = change.restarted or not self._begun
        self._begun = True
        if not change.records and not restarted:
            return []
        messages = []
        # Once at least, to say that the file has begun anew even if it is empty.
        for start in range(0, max(len(change.records), 1), BATCH):
            part = {
                "run": self._run.id,
                "restarted": restarted and start == 0,
                "records": change.records[start : start + BATCH],
            }
            messages.append(message("records", json.dumps(part)))
        return messages


class ListFollower:
    """The list of runs and comparisons.

    Args:
        library: Where they are.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._view = ""

    def news(self) -> list[str]:
        """Return the whole list if it has changed."""
        view = list_view(self._library).model_dump_json()
        if view == self._view:
            return []
        self._view = view
        return [message("list", view)]


async def events(
    followers: Sequence[Follower], poll_s: float, is_closing: Callable[[], bool]
) -> AsyncIterator[str]:
    """Give the text of a stream of server-sent events until the server closes.

    Args:
        followers: What to follow.
        poll_s: Seconds between looks.
        is_closing: Whether the server is about to end.
    """
    yield "retry: 1000\n\n"
    spoken = time.monotonic()
    while not is_closing():
        for follower in followers:
            # in a thread: a slow disk must not hold up the other browsers
            for text in await run_in_threadpool(follower.news):
                spoken = time.monotonic()
                yield text
        if time.monotonic() > spoken + QUIET_S:
            spoken = time.monotonic()
            yield ": nothing new\n\n"
        await asyncio.sleep(poll_s)


def message(event: str, data: Any) -> str:
    """Return one event; the data is JSON text, which has no line breaks."""
    return f"event: {event}\ndata: {data}\n\n"
