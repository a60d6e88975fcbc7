"""One reward service as seen from here: its answers, its errors, and which of them are worth another try."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import httpx
from pydantic import ValidationError

from customized_grpo.config.executors import HttpExecution
from customized_grpo.errors import UserError
from customized_grpo.rewards.service.wire import Problem

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 15.0
MAX_ANSWER = 16 * 2**20  # bytes; scores of a batch are thousands
MAX_DETAIL = 500  # characters of a foreign message that are shown
RETRIED = (408, 429)  # and everything from 500 on


class ServiceError(Exception):
    """The service could not be reached, was busy for too long, or answered with something else."""


@dataclass(frozen=True)
class Answer:
    """An answer that is not worth another try."""

    status: int
    body: bytes


class Connection:
    """HTTP with bounded retries, for one event loop. Follows no redirect and uses no proxy.

    Args:
        place: Address, timeout and number of retries.
        token: The service's token; None sends none. It appears in no message.
    """

    def __init__(self, place: HttpExecution, token: str | None) -> None:
        self.place, self._token = place, token
        headers = {"accept-encoding": "identity"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        self._client = httpx.AsyncClient(
            headers=headers, timeout=None, follow_redirects=False, trust_env=False
        )

    async def ask(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> Answer:
        """Send a request until it is answered.

        Args:
            method: HTTP method.
            path: Path after the service's URL.
            body: Content.
            kind: Type of the content.

        Raises:
            ServiceError: No answer within the time, or none but failures in all attempts.
            UserError: The service refused; says why.
        """
        pause, reason = FIRST_PAUSE_S, ""
        for attempt in range(self.place.retries + 1):
            if attempt:
                await asyncio.sleep(min(pause, LONGEST_PAUSE_S))
            try:
                async with asyncio.timeout(self.place.timeout_s):
                    status, retry_after, answer = await self._send(method, path, body, kind)
            except TimeoutError as error:
                raise ServiceError(
                    f"{self.place.url}: no answer within {self.place.timeout_s:g} s (executor.timeout_s)"
                ) from error
            except httpx.TransportError as error:
                pause, reason = FIRST_PAUSE_S * 2**attempt, f"{type(error).__name__}: {error}"
                continue
            if status not in RETRIED and status < 500:
                return self._checked(Answer(status, answer))
            pause = FIRST_PAUSE_S * 2**attempt if retry_after is None else retry_after
            reason = f"{status} {self._detail(answer).detail}"
        raise ServiceError(f"{self.place.url}: {self._safe(reason)} (attempts: {self.place.retries + 1})")

    async def close(self) -> None:
        """Close the sockets."""
        await self._client.aclose()

    async def _send(self, method: str, path: str, body: bytes, kind: str) -> tuple[int, float | None, bytes]:
        url = f"{self.place.url}{path}"
        async with self._client.stream(method, url, content=body, headers={"content-type": kind}) as response:
            parts, size = [], 0
            async for part in response.aiter_raw():
                size += len(part)
                if size > MAX_ANSWER:
                    raise ServiceError(f"{self.place.url}: the answer has more than {MAX_ANSWER:,} bytes")
                parts.append(part)
            text = response.headers.get("retry-after", "")
            return response.status_code, float(text) if text.isdecimal() else None, b"".join(parts)

    def _checked(self, answer: Answer) -> Answer:
        """Return an answer unless it is a refusal that the user must know of."""
        if answer.status < 300 or answer.status == 409:
            return answer
        if answer.status < 400:
            raise UserError(
                f"{self.place.url} answers with a redirect ({answer.status}), which is not followed",
                "Set executor.url to the address of the service itself.",
            )
        problem = self._detail(answer.body)
        detail = f"{self.place.url}: {self._safe(problem.detail) or answer.status}"
        raise UserError(detail, problem.hint and self._safe(problem.hint))

    def _detail(self, body: bytes) -> Problem:
        """Read the reason of a refusal; what is no problem document has none that could be trusted."""
        try:
            return Problem.model_validate_json(body)
        except ValidationError:
            return Problem(title="", status=0, detail="")

    def _safe(self, text: str) -> str:
        """Shorten a foreign message, and take out the token if it was sent back."""
        shown = text if self._token is None else text.replace(self._token, "[redacted]")
        return shown[:MAX_DETAIL]
