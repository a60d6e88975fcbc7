"""The process of a reward service: its socket, its signals, and how it ends."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

import uvicorn

from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.service.app import Limits, Service, build_app
from customized_grpo.rewards.service.queue import SCORE_S, RequestQueue
from customized_grpo.serving.connections import server_config

logger = logging.getLogger(__name__)

DRAIN_S = 15.0  # for accepted requests after a signal; cluster managers kill 30 s after it
CLOSE_S = 2.0  # for connections, and then for the threads of the rewards
WATCH_TICKS = 5  # of a tenth of a second, between looks at rewards that may hang
KEEP_ALIVE_S = 60  # longer than most rollout batches take, so that connections are reused


def serve(
    rewards: Mapping[str, Sequence[Reward]],
    settings: Mapping[str, dict[str, str]],
    listener: socket.socket,
    limits: Limits,
    *,
    token: str | None,
    merge: int,
    score_s: float = SCORE_S,
) -> None:
    """Answer requests until SIGTERM or Ctrl-C; those accepted before it are still answered, within `DRAIN_S`.

    Ends the process with status 1 if a reward never came back.

    Args:
        rewards: The copies of each reward, by the name that requests use.
        settings: `registry.scoring_settings` of each, by the same names.
        listener: Where to listen, from `listen`.
        limits: What a client may ask for.
        token: What a client must present; None: nothing is needed.
        merge: Samples of several requests that may be scored together; 0 merges none.
        score_s: Seconds after which a reward that has not answered counts as hanging.
    """
    queues = {name: RequestQueue(copies, merge, score_s) for name, copies in rewards.items()}
    try:
        Server(Service(queues, settings, limits, token)).run(sockets=[listener])
    finally:
        hanging = [name for name, queue in queues.items() if not queue.close(CLOSE_S)]
    if hanging:
        logger.error("given up: reward %s never answered", ", ".join(hanging))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # an exit that waits for nobody; a thread in the middle of torch would crash any other


class Server(uvicorn.Server):
    """Server that ends in two steps: after the first signal new requests get 503, accepted ones are finished.

    Args:
        service: The application; the first signal sets its `draining`.
    """

    def __init__(self, service: Service) -> None:
        super().__init__(server_config(build_app(service), keep_alive_s=KEEP_ALIVE_S, close_s=int(CLOSE_S)))
        self.service = service
        self._drained_by: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal ends the process at once."""
        if self.service.draining:
            os._exit(128 + signal.Signals(sig))
        self.service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; True ends it."""
        stop = await super().on_tick(counter)
        if counter % WATCH_TICKS == 0:
            self.service.problem()
        if not self.service.draining:
            return stop
        now = time.monotonic()
        if self._drained_by is None:
            # Counted from the first tick after the signal.
            self._drained_by = now + DRAIN_S
        return stop or self.service.accepted == 0 or now > self._drained_by
