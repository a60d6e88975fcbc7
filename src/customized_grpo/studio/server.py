"""The process of a studio: its socket, its signals, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
from types import FrameType

import uvicorn

from customized_grpo.serving.connections import server_config
from customized_grpo.studio.app import Studio, build_app

CLOSE_S = 2  # for answers that are on their way after a signal
KEEP_ALIVE_S = 60  # so that a page that is read for a while keeps its connections


class Server(uvicorn.Server):
    """Server that ends its streams at the first signal, and the process at the second.

    Args:
        studio: The application; the first signal sets its `is_closing`.
    """

    def __init__(self, studio: Studio) -> None:
        super().__init__(server_config(build_app(studio), keep_alive_s=KEEP_ALIVE_S, close_s=CLOSE_S))
        self.studio = studio

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End; a second signal ends the process at once."""
        if self.studio.is_closing:
            os._exit(128 + signal.Signals(sig))
        self.studio.is_closing = True
        self.should_exit = True

    def close(self) -> None:
        """End, from another thread."""
        self.studio.is_closing = True
        self.should_exit = True


def serve(studio: Studio, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C.

    Args:
        studio: What to serve.
        listener: Where to listen, from `serving.access.listen`.
    """
    Server(studio).run(sockets=[listener])
