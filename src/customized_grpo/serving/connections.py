"""The service's side of a connection: a client that says nothing keeps neither a socket nor others out.

uvicorn waits for the header of a request as long as the client likes, and takes any number of connections. So
whoever reaches the port, with or without a token, could hold all file descriptors of the process.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_S = 10.0
CONNECTIONS = 512  # of all clients; below the 1,024 files that a process may usually open
CONNECTIONS_OF_A_CLIENT = 256  # by address; a trainer needs `connections` for each reward


def server_config(app: Any, *, keep_alive_s: int, close_s: int) -> uvicorn.Config:
    """Return how a service of the package listens: silently, by `Connection`, without lifespan or websockets.

    Args:
        app: The ASGI application.
        keep_alive_s: Seconds that an idle connection may stay.
        close_s: Seconds for answers that are on their way when the service ends.
    """
    return uvicorn.Config(
        app,
        http=Connection,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=close_s,
    )


class Connection(H11Protocol):
    """A connection that is closed if no header comes in time, or if others need its place.

    A connection beyond the limits closes the oldest one that is idle or still sends its request: of the same
    client if that client has too many. Requests that are being answered are never cut.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timer: asyncio.TimerHandle | None = None
        self._made = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """Begin to wait for a request, and make room if there are too many connections."""
        super().connection_made(transport)
        self._expect_header()
        others = [other for other in self.connections if isinstance(other, Connection) and other.is_open]
        same_client = [other for other in others if other.host == self.host]
        for group, limit in ((same_client, CONNECTIONS_OF_A_CLIENT), (others, CONNECTIONS)):
            if len(group) > limit:
                # never empty: this connection is new, and so not being answered
                victims = [other for other in group if not other.is_being_answered]
                min(victims, key=lambda other: other._made).transport.abort()
                return

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; stop the clock when the header is whole, and start it for the next one."""
        super().data_received(data)
        if self._is_idle:
            self._expect_header()
        else:
            self._cancel_timer()

    @property
    def host(self) -> str | None:
        """Return the client's address."""
        return None if self.client is None else self.client[0]

    @property
    def is_open(self) -> bool:
        """Return whether nobody has begun to close it."""
        return not self.transport.is_closing()

    @property
    def is_being_answered(self) -> bool:
        """Return whether the whole request is here, and its answer is not out."""
        return not self._is_idle and not self.cycle.more_body

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_header(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        self._header_timer = None
        if self._is_idle and self.is_open:
            self.transport.abort()

    def _cancel_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
