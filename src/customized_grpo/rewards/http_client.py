"""Bounded HTTP requests, for the judge's endpoint and the reward service.

The other side is somebody else's and perhaps broken or hostile. Therefore:
* one deadline per attempt, from connecting to the last byte: a read timeout alone lets a slow answer go on;
* caps on the bytes of a request and of an answer, and no compression, which could hide a bomb;
* no redirect is followed: it would carry the secret wherever it points, also into the private network;
* no proxy of the environment unless asked for: HTTP_PROXY would get the secret in clear text;
* failures that may pass (connection errors, 408, 429, 5xx) are tried again a bounded number of times;
* what the other side says is shortened and stripped of secrets before a message may quote it.
"""

from __future__ import annotations

import asyncio
import email.utils
import functools
import math
import os
import random
import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType

import httpx

from customized_grpo.plain_text import one_line

REQUEST_TIMEOUT, TOO_MANY_REQUESTS, SERVER_ERROR = 408, 429, 500
_SECRET_LIKE = re.compile(r"\b(?:(?:sk|pk|key)[-_]|Bearer )[\w*.-]+|data:image/[\w;,+/=-]+")


@dataclass(frozen=True)
class HttpSettings:
    """Limits of a client.

    Attributes:
        timeout_s: Longest time for one attempt, in seconds; an attempt that takes longer is not repeated.
        retries: Further attempts after a failure that may pass.
        first_pause_s: Pause before the second attempt, in seconds; it doubles with each further one.
        longest_pause_s: Bound of every pause, also of one that the other side asks for.
        max_request_bytes: Bound of a request's body.
        max_answer_bytes: Bound of an answer's body.
        max_connections: Bound of the sockets that are open at once; None means none.
        excerpt: Characters of an answer that a message may quote.
        use_proxy: Whether HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY are followed.
    """

    timeout_s: float
    retries: int
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0
    max_request_bytes: int = 256 << 20
    max_answer_bytes: int = 1 << 20
    max_connections: int | None = None
    excerpt: int = 200
    use_proxy: bool = False


class HttpError(Exception):
    """There is no answer that could be used.

    Args:
        reason: A few words that repeat, so that they can be counted.
        detail: More about this case, without secrets; may be empty.
        may_pass: Whether another attempt may help.
    """

    def __init__(self, reason: str, detail: str = "", *, may_pass: bool = False) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.may_pass = may_pass


@dataclass(frozen=True)
class HttpAnswer:
    """An answer of any status; a redirect is one too.

    Attributes:
        status: HTTP status.
        body: Content; empty if that of an error could not be read.
        retry_after_s: Seconds the other side asks to wait; None if it does not say.
    """

    status: int
    body: bytes
    retry_after_s: float | None = None

    @property
    def may_pass(self) -> bool:
        """Whether another attempt may help."""
        return self.status in (REQUEST_TIMEOUT, TOO_MANY_REQUESTS) or self.status >= SERVER_ERROR


class HttpClient:
    """Requests within limits, on one event loop.

    Args:
        settings: The limits.
        secret: Sent as bearer token; None sends none. No message contains it.
    """

    def __init__(self, settings: HttpSettings, secret: str | None = None) -> None:
        self.settings = settings
        self._secret = secret
        self._jitter = random.Random()
        # A compressed answer of a few kilobytes could unpack to any size.
        headers = {"Accept-Encoding": "identity"}
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret}"
        limits = httpx.Limits(max_connections=settings.max_connections)
        # A transport of our own keeps the client from the environment's proxies, and still finds the
        # certificates of SSL_CERT_FILE. No timeout of httpx's: it is per read, `_attempt` has one for all.
        transport = (
            None if settings.use_proxy else httpx.AsyncHTTPTransport(verify=tls_context(), limits=limits)
        )
        self._client = httpx.AsyncClient(
            headers=headers,
            transport=transport,
            limits=limits,
            trust_env=settings.use_proxy,
            timeout=None,
            follow_redirects=False,
        )

    async def __aenter__(self) -> HttpClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the sockets."""
        await self._client.aclose()

    async def request(
        self, method: str, url: str, body: bytes = b"", content_type: str = "application/json"
    ) -> HttpAnswer:
        """Return the first answer that another attempt would not change, or the last one.

        Args:
            method: HTTP method.
            url: The address.
            body: Content.
            content_type: Its type.

        Raises:
            HttpError: There is none within the limits.
        """
        if len(body) > self.settings.max_request_bytes:
            raise HttpError(f"request over {self.settings.max_request_bytes:,} bytes")
        # The last attempt is below the loop: its answer or error is final, whatever it is.
        for number in range(self.settings.retries):
            try:
                answer = await self._attempt(method, url, body, content_type)
            except HttpError as error:
                if not error.may_pass:
                    raise
                retry_after_s = None
            else:
                if not answer.may_pass:
                    return answer
                retry_after_s = answer.retry_after_s
            await asyncio.sleep(pause_s(self.settings, number, retry_after_s, self._jitter))
        return await self._attempt(method, url, body, content_type)

    def redact(self, text: str) -> str:
        """Return the first characters of what the other side says, see `redact`."""
        return redact(text, self._secret, self.settings.excerpt)

    async def _attempt(self, method: str, url: str, body: bytes, content_type: str) -> HttpAnswer:
        headers = {"Content-Type": content_type}
        try:
            async with (
                asyncio.timeout(self.settings.timeout_s),
                self._client.stream(method, url, content=body, headers=headers) as response,
            ):
                return HttpAnswer(response.status_code, await self._read(response), _retry_after_s(response))
        except TimeoutError as error:
            seconds = f"{self.settings.timeout_s:g} s"
            raise HttpError("timeout", f"no answer within {seconds} (timeout_s)") from error
        except httpx.TransportError as error:
            detail = self.redact(f"{type(error).__name__}: {error}")
            raise HttpError("connection error", detail, may_pass=True) from error

    async def _read(self, response: httpx.Response) -> bytes:
        try:
            return await _read_body(response, self.settings.max_answer_bytes)
        except HttpError:
            if response.is_success:
                raise
            return b""  # the status says what is wrong; its text would only explain


def tls_context() -> ssl.SSLContext:
    """Return a context that trusts the certificates of SSL_CERT_FILE or SSL_CERT_DIR, else certifi's."""
    return _read_certificates(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@functools.cache
def _read_certificates(file: str | None, folder: str | None) -> ssl.SSLContext:
    # once, because it takes 20 ms, and a judge has a new client for every batch; httpx reads both variables
    return httpx.create_ssl_context()


def redact(text: str, secret: str | None, length: int) -> str:
    """Return the first characters of a foreign text: on one line, printable, without secrets and images.

    Args:
        text: What the other side says.
        secret: What it must not repeat; what only looks like a key is taken out as well.
        length: Characters that are left of a longer text.
    """
    # Before the text is shortened, or half a key could be left at its end.
    if secret is not None:
        text = text.replace(secret, "[redacted]")
    return one_line(_SECRET_LIKE.sub("[redacted]", text))[:length]


def pause_s(settings: HttpSettings, number: int, retry_after_s: float | None, jitter: random.Random) -> float:
    """Return the seconds before the next attempt: what the other side asks for, or doubling, up to a bound.

    The jitter, a factor of .5 to 1, keeps requests that failed together from returning together.

    Args:
        settings: The first and the longest pause.
        number: Failed attempts before the last one.
        retry_after_s: What the other side asks for.
        jitter: Where the factor comes from.
    """
    # Asked for by the other side, so without jitter.
    if retry_after_s is not None:
        return min(retry_after_s, settings.longest_pause_s)
    doubled = math.ldexp(settings.first_pause_s, number)
    # Jitter, so that clients that failed together do not come back together.
    return min(doubled, settings.longest_pause_s) * jitter.uniform(0.5, 1.0)


async def _read_body(response: httpx.Response, max_bytes: int) -> bytes:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise HttpError("compressed answer, though none was asked for")
    body = bytearray()
    # Counted while it comes: Content-Length is what the other side claims.
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise HttpError(f"answer over {max_bytes:,} bytes")
    return bytes(body)


def _retry_after_s(response: httpx.Response) -> float | None:
    """Return the seconds of Retry-After, a number or a date; None if it says nothing usable."""
    value = response.headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        # six digits are 11 days; `pause_s` has the bound
        return float(value[:6])
    try:
        until = email.utils.parsedate_to_datetime(value)
        return max(0.0, (until - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
