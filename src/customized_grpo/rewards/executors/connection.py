"""One reward service as the client sees it: its answers, and its refusals as messages for the user."""

from __future__ import annotations

from pydantic import ValidationError

from customized_grpo.config.executors import HttpExecution
from customized_grpo.errors import UserError
from customized_grpo.rewards.http_client import HttpAnswer, HttpClient, HttpError, HttpSettings
from customized_grpo.rewards.service.protocol import Problem

CONFLICT = 409  # references are missing; the body names them


class Connection:
    """Requests to a service, for one event loop.

    Args:
        place: Address, timeout and number of retries.
        token: The service's token; None sends none. No message contains it.
    """

    def __init__(self, place: HttpExecution, token: str | None) -> None:
        self.place = place
        settings = HttpSettings(
            place.timeout_s,
            place.retries,
            first_pause_s=0.25,
            longest_pause_s=15.0,
            max_answer_bytes=16 << 20,  # scores of a batch are thousands, a fingerprint has kilobytes
            excerpt=500,
        )
        self._http = HttpClient(settings, token)

    async def ask(
        self, method: str, path: str, body: bytes = b"", content_type: str = "application/json"
    ) -> HttpAnswer:
        """Return the answer to a request: a success, or status 409.

        Args:
            method: HTTP method.
            path: Path after the service's URL.
            body: Content.
            content_type: Its type.

        Raises:
            HttpError: No answer within the limits, or only failures in all attempts.
            UserError: The service refused; says why.
        """
        try:
            answer = await self._http.request(method, f"{self.place.url}{path}", body, content_type)
        except HttpError as error:
            raise HttpError(self.place.url, f"{error}{self._attempts(error.may_pass)}") from error
        # Still such a status after the last attempt.
        if answer.may_pass:
            detail = f"{answer.status} {self._http.redact(_problem(answer.body).detail)}"
            raise HttpError(self.place.url, f"{detail}{self._attempts(True)}")
        if answer.status >= 300 and answer.status != CONFLICT:
            raise self._refusal(answer)
        return answer

    async def close(self) -> None:
        """Close the sockets."""
        await self._http.close()

    def _attempts(self, were_all_used: bool) -> str:
        return f" (attempts: {self.place.retries + 1})" if were_all_used else ""

    def _refusal(self, answer: HttpAnswer) -> UserError:
        if answer.status < 400:
            return UserError(
                f"{self.place.url} answers with a redirect ({answer.status}), which is not followed",
                hint="Set executor.url to the address of the service itself.",
            )
        problem = _problem(answer.body)
        reason = self._http.redact(problem.detail) or str(answer.status)
        hint = None if problem.hint is None else self._http.redact(problem.hint)
        return UserError(f"{self.place.url}: {reason}", hint=hint)


def _problem(body: bytes) -> Problem:
    """Return the reason of a refusal; a body that is no problem document has none that could be trusted."""
    try:
        return Problem.model_validate_json(body)
    except ValidationError:
        return Problem(title="", status=0, detail="")
