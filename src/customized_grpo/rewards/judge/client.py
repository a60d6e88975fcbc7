"""Requests to an OpenAI-compatible endpoint: bounded in time, size, number and where they may go.

What comes back is somebody else's and perhaps broken: a total deadline per attempt (a read timeout alone
would let an answer drip for ever), a cap on its size, no compression (a bomb), no redirect (it would carry
the key, and a request into the private network, wherever it points). Every failure has a reason that can be
counted.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from customized_grpo.seeding import derive_seed

MAX_ANSWER_BYTES = 1 << 20
MAX_WAIT_S = 30.0
BACKOFF_S = 0.5
EXCERPT = 200  # characters of an answer that a message may quote
REQUEST_TIMEOUT, TOO_MANY_REQUESTS, SERVER_ERROR = 408, 429, 500
_KEY_LIKE = re.compile(r"\b(?:sk|pk|key|Bearer)[-_ ][\w*.-]+|data:image/[\w;,+/=-]+")


@dataclass(frozen=True)
class Failure:
    """Why there is no score.

    Attributes:
        reason: In a few words that repeat, so that they can be counted.
        excerpt: What the endpoint said, cut and without secrets; may be empty.
    """

    reason: str
    excerpt: str = ""


@dataclass(frozen=True)
class _Attempt:
    """The outcome of one request, whether another may help, and how long the endpoint asked to wait (s)."""

    outcome: bytes | Failure
    retry: bool = False
    wait: float | None = None


def check_url(url: str) -> str:
    """Return the address of an endpoint if it is one; for a field of pydantic.

    Raises:
        ValueError: It is no plain http(s) address. The message does not repeat it: it may hold a password.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise ValueError("this is no web address") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("an address must begin with http:// or https:// and name a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "an address must not hold a user or password: give the name of an environment variable"
        )
    if parts.query or parts.fragment:
        raise ValueError("an address must not hold ? or #: what follows them would be stored with the run")
    return url.rstrip("/")


class JudgeClient:
    """Asks one endpoint many things at once.

    Args:
        url: Address of the API, such as http://localhost:8000/v1; `check_url` accepts it.
        key: Secret that is sent as bearer token; None sends none. It is in no message.
        concurrency: Requests under way at once.
        timeout_s: Longest time for one attempt, from connecting to the last byte.
        retries: Further attempts after a connection error, 408, 429 or 5xx.
    """

    def __init__(
        self, url: str, *, key: str | None, concurrency: int, timeout_s: float, retries: int
    ) -> None:
        self.endpoint = f"{check_url(url)}/chat/completions"
        self.concurrency, self.timeout_s, self.retries = concurrency, timeout_s, retries
        self._key = key

    def ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[bytes | Failure]:
        """Send each body as JSON; return each answer, of status 200 and not looked into, or a failure."""
        return asyncio.run(self._ask_all([json.dumps(body).encode() for body in bodies]))

    def redact(self, text: str) -> str:
        """Return the first characters of a text, printable, without the key and what looks like one."""
        if self._key is not None:
            text = text.replace(self._key, "[redacted]")
        text = " ".join(_KEY_LIKE.sub("[redacted]", text).split())
        return "".join(c for c in text if c.isprintable())[:EXCERPT]

    async def _ask_all(self, contents: Sequence[bytes]) -> list[bytes | Failure]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx.Limits(max_connections=self.concurrency)
        slots = asyncio.Semaphore(self.concurrency)
        # No timeout of httpx's own: it is per read, `_attempt` has one for all.
        async with httpx.AsyncClient(
            headers=headers, limits=limits, timeout=None, follow_redirects=False
        ) as http:
            return await asyncio.gather(*(self._ask(http, slots, content) for content in contents))

    async def _ask(
        self, http: httpx.AsyncClient, slots: asyncio.Semaphore, content: bytes
    ) -> bytes | Failure:
        """Try until there is an answer; the slot is kept while waiting, so that an overloaded judge rests."""
        async with slots:
            for number in range(self.retries):
                attempt = await self._attempt(http, content)
                if not attempt.retry:
                    return attempt.outcome
                await asyncio.sleep(_wait(attempt, number, content))
            return (await self._attempt(http, content)).outcome

    async def _attempt(self, http: httpx.AsyncClient, content: bytes) -> _Attempt:
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                http.stream("POST", self.endpoint, content=content) as response,
            ):
                return await self._read(response)
        except TimeoutError:
            return _Attempt(Failure("timeout", f"no answer within {self.timeout_s:g} s"))
        except httpx.TransportError as error:
            said = self.redact(f"{type(error).__name__}: {error}")
            return _Attempt(Failure("connection error", said), retry=True)

    async def _read(self, response: httpx.Response) -> _Attempt:
        status = response.status_code
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            outcome: bytes | Failure = Failure("compressed answer, though none was asked for")
        else:
            outcome = await _body(response)
        if status == httpx.codes.OK:
            return _Attempt(outcome)
        said = self.redact(outcome.decode("utf-8", "replace")) if isinstance(outcome, bytes) else ""
        if response.is_redirect:
            return _Attempt(Failure(f"redirect (status {status}), which is never followed", said))
        retry = status in (REQUEST_TIMEOUT, TOO_MANY_REQUESTS) or status >= SERVER_ERROR
        return _Attempt(Failure(f"status {status}", said), retry, _retry_after(response))


async def _body(response: httpx.Response) -> bytes | Failure:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            return Failure(f"answer over {MAX_ANSWER_BYTES:,} bytes")
    return bytes(body)


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds the endpoint asks to wait, as a number or a date; None if it says nothing usable."""
    value = response.headers.get("retry-after", "")
    if value.isascii() and value.isdigit():
        return float(value[:6])
    try:
        until = email.utils.parsedate_to_datetime(value)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _wait(attempt: _Attempt, number: int, content: bytes) -> float:
    """Return the seconds before the next attempt: what was asked for, or doubling, up to a bound.

    The jitter keeps requests that failed together from returning together; it depends on the request alone.
    """
    if attempt.wait is not None:
        return min(attempt.wait, MAX_WAIT_S)
    seed = derive_seed(0, "judge backoff", hashlib.sha256(content).hexdigest(), number)
    return min(math.ldexp(BACKOFF_S, number), MAX_WAIT_S) * random.Random(seed).uniform(0.5, 1.0)
