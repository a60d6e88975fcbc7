"""The process of a reward service: its socket, its signals, and how it ends."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from types import FrameType

import uvicorn

from customized_grpo.errors import UserError
from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.service.app import Limits, Service, build_app
from customized_grpo.rewards.service.queue import RequestQueue

MIN_TOKEN = 16  # characters
KEEP_ALIVE_S = 60  # longer than most rollout batches take, so that connections are reused


def serve(
    rewards: Mapping[str, Sequence[Reward]],
    listener: socket.socket,
    limits: Limits,
    *,
    token: str | None,
    merge: int,
) -> None:
    """Answer requests until SIGTERM or Ctrl-C; those accepted before it are still answered.

    Args:
        rewards: The copies of each reward, by the name that requests use.
        listener: Where to listen, from `listen`.
        limits: What a client may ask for.
        token: What a client must present; None: nothing is needed.
        merge: Samples of several requests that may be scored together; 0 merges none.
    """
    queues = {name: RequestQueue(copies, merge) for name, copies in rewards.items()}
    try:
        Server(Service(queues, limits, token)).run(sockets=[listener])
    finally:
        for queue in queues.values():
            queue.close()


def check_access(host: str, token: str | None, token_env: str) -> None:
    """Refuse to listen to other machines without a token, and refuse a token that can be guessed.

    Raises:
        UserError: Says which variable to set.
    """
    fix = f"Set {token_env}, for example: export {token_env}=$(openssl rand -hex 32)"
    if token is None and not _is_loopback(host):
        raise UserError(f"--host {host} can be reached from other machines, and there is no token", hint=fix)
    if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable()):
        raise UserError(f"the token in {token_env} is not {MIN_TOKEN} or more printable characters", hint=fix)


def listen(host: str, port: int) -> socket.socket:
    """Open the socket; port 0 takes any free one.

    Raises:
        UserError: The address is unknown or taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=256)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host} port {port}: {error.strerror}", hint="Choose another --host or --port."
        ) from error
    listener.set_inheritable(False)
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Server(uvicorn.Server):
    """Server that ends in two steps: after the first signal new requests get 503, accepted ones are finished.

    Args:
        service: The application; the first signal sets its `draining`.
    """

    def __init__(self, service: Service) -> None:
        super().__init__(
            uvicorn.Config(
                build_app(service),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal ends the process at once."""
        if self.service.draining:
            os._exit(128 + signal.Signals(sig))
        self.service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; True ends it."""
        stop = await super().on_tick(counter)
        return stop or (self.service.draining and self.service.accepted == 0)
