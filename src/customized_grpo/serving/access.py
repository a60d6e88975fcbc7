"""Where a service listens, and when it needs a token."""

from __future__ import annotations

import ipaddress
import socket

from customized_grpo.errors import UserError

MIN_TOKEN = 16  # characters


def check_access(host: str, token: str | None, token_env: str) -> None:
    """Refuse to listen to other machines without a token, and refuse a token that can be guessed.

    Raises:
        UserError: Says which variable to set.
    """
    fix = f"Set {token_env}, for example: export {token_env}=$(openssl rand -hex 32)"
    if token is None and not is_loopback(host):
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


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address to listen on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
