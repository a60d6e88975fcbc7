"""Requests to an OpenAI-compatible endpoint, many at once; see `http_client` for their limits."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from customized_grpo.rewards.http_client import HttpAnswer, HttpClient, HttpError, HttpSettings, redact
from customized_grpo.rewards.judge.answers import Failure
from customized_grpo.rewards.judge.dialect import REFUSALS, REFUSED, refused_parameter, without

FIRST_PAUSE_S = 0.5

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


def check_url(url: str) -> str:
    """Return the address of an endpoint if it is one; for a field of pydantic.

    Raises:
        ValueError: It is no plain http(s) address. The message does not repeat it: it may hold a password.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port  # raises if it is none
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
        key: Secret that is sent as bearer token; None sends none. No message contains it.
        concurrency: Requests under way at once.
        timeout_s: Longest time for one attempt, in seconds.
        retries: Further attempts after a connection error, 408, 429 or 5xx.
        use_proxy: Whether the proxy of the environment is used.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None,
        concurrency: int,
        timeout_s: float,
        retries: int,
        use_proxy: bool = False,
    ) -> None:
        self.endpoint = f"{check_url(url)}/chat/completions"
        self._key = key
        self._concurrency = concurrency
        self._refused: tuple[str, ...] = ()
        self._settings = HttpSettings(
            timeout_s,
            retries,
            first_pause_s=FIRST_PAUSE_S,
            max_connections=concurrency,
            use_proxy=use_proxy,
        )

    def ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[bytes | Failure]:
        """Send each body as JSON; return each answer of status 200, unchecked, or a failure.

        May be called inside a running event loop, such as that of a notebook; it is kept waiting.
        """
        return _run(self._ask_all(bodies))

    def redact(self, text: str) -> str:
        """Return the first characters of an answer without the key, for a message."""
        return redact(text, self._key, self._settings.excerpt)

    async def _ask_all(self, bodies: Sequence[Mapping[str, Any]]) -> list[bytes | Failure]:
        slots = asyncio.Semaphore(self._concurrency)
        # one for each call: sockets belong to an event loop, and `_run` makes a new one
        async with HttpClient(self._settings, self._key) as http:
            return await asyncio.gather(*(self._ask(http, slots, body) for body in bodies))

    async def _ask(
        self, http: HttpClient, slots: asyncio.Semaphore, body: Mapping[str, Any]
    ) -> bytes | Failure:
        """Ask once; the slot is kept between attempts, so that an overloaded judge gets a rest."""
        async with slots:
            try:
                answer = await self._understood(http, body)
            except HttpError as error:
                return Failure(error.reason, error.detail)
        if answer.status == httpx.codes.OK:
            return answer.body
        excerpt = self.redact(answer.body.decode("utf-8", "replace"))
        if httpx.codes.is_redirect(answer.status):
            return Failure(f"redirect (status {answer.status}), which is never followed", excerpt)
        return Failure(f"status {answer.status}", excerpt)

    async def _understood(self, http: HttpClient, body: Mapping[str, Any]) -> HttpAnswer:
        """Ask, and once more without each parameter that a refusal names; remember those if that helps."""
        # What it refused before is not tried again.
        refused = self._refused
        while True:
            asked = without(body, refused)
            answer = await http.request("POST", self.endpoint, json.dumps(asked).encode())
            parameter = None
            if answer.status in REFUSALS:
                parameter = refused_parameter(asked, answer.body.decode("utf-8", "replace"))
            if parameter is None:
                break
            refused = (*refused, parameter)
        # Only what helped is remembered: a refusal may have named the wrong thing.
        if answer.status == httpx.codes.OK:
            self._learn(refused)
        return answer

    def _learn(self, refused: Sequence[str]) -> None:
        for parameter in refused:
            if parameter not in self._refused:
                self._refused = (*self._refused, parameter)
                logger.warning("judge: %s refuses %s", self.endpoint, REFUSED[parameter])


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of a coroutine; in a thread where this one already has a running loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
