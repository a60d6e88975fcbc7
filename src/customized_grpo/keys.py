"""Which environment variables a recipe may name, and the secrets in them.

A recipe names a variable and the address that its value is sent to, and a recipe may come from anybody: it
could name any secret of yours and an address of its own. So it may name variables whose names begin with
CGRPO_, which you set for this product, and those in your own setting CGRPO_KEYS, such as
`OPENAI_API_KEY@api.openai.com`: that key, for that host alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from customized_grpo.errors import UserError

KEYS = "CGRPO_KEYS"
"""Environment variable with the names that recipes may use, NAME or NAME@HOST, with commas between."""

PREFIX = "CGRPO_"
"""Of the names that a recipe may use without being in CGRPO_KEYS."""

REFERENCE = "env:"
"""What an option of a reward of your own begins with that names a variable instead of holding its value."""

SETTINGS = (KEYS, "CGRPO_TRUST")
"""Variables that say what a recipe may do; it may never name them itself."""


def allow(variable: str) -> None:
    """Allow a variable that the user has named, in this process and in those that it starts."""
    os.environ[KEYS] = ",".join([*_entries(), variable])


def why_not(variable: str, url: str | None = None) -> str | None:
    """Return why a recipe may not name a variable, and how the user can allow it; None if it may.

    Args:
        variable: Name of the environment variable.
        url: Where its value would be sent; None: code that the user trusts decides, or it is set, not read.
    """
    if variable in SETTINGS:
        return f"a recipe must not name {variable}, which says what recipes may do"
    host = None if url is None else urlsplit(url).hostname
    hosts = [allowed for name, allowed in map(_split, _entries()) if name == variable]
    # None among the hosts allows all of them; once hosts are named, the prefix alone is not enough
    if None in hosts or host in hosts or (not hosts and variable.startswith(PREFIX)):
        return None
    entry = f"{variable}@{host}" if host else variable
    return (
        f"a recipe may name variables that begin with {PREFIX} only, unless you allow more; "
        f"if you know the recipe: export {KEYS}={','.join([*_entries(), entry])}"
    )


def with_secrets(options: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return options in which every `env:NAME` is the secret in that variable, which no `repr` shows.

    Args:
        options: Options of a reward of the user's own.
        place: Whose they are, for messages.

    Raises:
        UserError: See `read_key`.
    """
    resolved = dict(options)
    for name, value in options.items():
        if isinstance(value, str) and value.startswith(REFERENCE):
            variable = value.removeprefix(REFERENCE)
            resolved[name] = SecretStr(read_key(variable, None, f"{place}: options.{name}"))
    return resolved


def read_key(variable: str, url: str | None, place: str) -> str:
    """Return the secret in an environment variable that a recipe names.

    Args:
        variable: Name of the environment variable.
        url: Where it will be sent; None: code that the user trusts decides.
        place: What names the variable, for messages, such as "executor.token_env".

    Raises:
        UserError: The recipe may not name it, it is not set, or what it holds cannot be sent.
    """
    if (problem := why_not(variable, url)) is not None:
        raise UserError(f"{place}: {variable}: {problem}")
    key = os.environ.get(variable, "")
    if not key:
        raise UserError(
            f"{place}: the environment variable {variable} is not set",
            hint=f"Set it (export {variable}=...), or remove the option.",
        )
    # it becomes part of a header of HTTP: a line end in it would begin another one
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            f"{place}: the value of the environment variable {variable} cannot be a key",
            hint="Set it again without spaces, line ends and characters beyond ASCII.",
        )
    return key


def _entries() -> Iterator[str]:
    for entry in os.environ.get(KEYS, "").split(","):
        if entry.strip():
            yield entry.strip()


def _split(entry: str) -> tuple[str, str | None]:
    """Return the name and the host of an entry; None: any host."""
    name, at, host = entry.partition("@")
    # `urlsplit` gives a host in lower case
    return name, host.lower() if at else None
