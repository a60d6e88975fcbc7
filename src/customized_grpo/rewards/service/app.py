"""The reward service as a web application: who may ask, how much, and what each address does."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from customized_grpo.errors import UserError
from customized_grpo.rewards.base import RewardError
from customized_grpo.rewards.service.intake import Refusal, named_references, parse, to_batch
from customized_grpo.rewards.service.pictures import PictureError, pixel_count
from customized_grpo.rewards.service.queue import Line
from customized_grpo.rewards.service.references import ReferenceStore
from customized_grpo.rewards.service.wire import (
    PROBLEM_TYPE,
    PROTOCOL,
    Info,
    Problem,
    References,
    RewardInfo,
    ScoreAnswer,
    ScoreRequest,
    digest_of,
)

logger = logging.getLogger(__name__)

READ_S = 60  # for a client to send its whole request
RETRY_AFTER_S = 1


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        body_bytes: Largest request.
        pixels: Largest number of pixels of a request in all.
        waiting: Requests accepted and not yet answered; more are refused with 503.
        reference_bytes: References kept, in all.
    """

    body_bytes: int
    pixels: int
    waiting: int
    reference_bytes: int


class Service:
    """State of the service, used in its event loop only.

    Args:
        lines: The rewards, by the names requests call them.
        limits: What a client may ask for.
        token: What a client must present; None lets everybody ask.
    """

    def __init__(self, lines: Mapping[str, Line], limits: Limits, token: str | None) -> None:
        self.lines, self.limits, self._token = lines, limits, token
        self.store = ReferenceStore(limits.reference_bytes)
        self.accepted = 0
        self.draining = False
        rewards = [_info(name, line) for name, line in lines.items()]
        merge = max(line.merge for line in lines.values())
        self.info = Info(protocol=PROTOCOL, rewards=rewards, merge=merge)
        self.digests = {reward.name: reward.digest for reward in rewards}

    def check_token(self, request: Request) -> None:
        """Refuse who does not present the token; compared in constant time."""
        if self._token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._token.encode()):
            raise Refusal(
                401, "the token is missing or wrong", "The client sends what executor.token_env names."
            )

    @asynccontextmanager
    async def place(self, request: Request) -> AsyncIterator[None]:
        """Hold one of the places for requests inside the block, or refuse because there is none."""
        if self.draining:
            await _discard(request, self.limits.body_bytes)
            raise Refusal(503, "the service is shutting down", retry_after=RETRY_AFTER_S)
        if self.accepted >= self.limits.waiting:
            await _discard(request, self.limits.body_bytes)
            raise Refusal(503, f"{self.accepted} requests wait already", retry_after=RETRY_AFTER_S)
        self.accepted += 1
        try:
            yield
        finally:
            self.accepted -= 1

    async def body(self, request: Request) -> bytes:
        """Read the request, as far as it is no larger than the limit."""
        limit = self.limits.body_bytes
        too_large = Refusal(
            413,
            f"the request has more than {limit:,} bytes",
            "Ask about fewer pictures at once (rollout.batch_size), or raise the service's --max-body-mb.",
        )
        if int(request.headers.get("content-length", 0)) > limit:
            await _discard(request, limit)
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(READ_S):
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        raise too_large
                    parts.append(part)
        except TimeoutError as error:
            raise Refusal(408, f"the request did not arrive within {READ_S} s") from error
        return b"".join(parts)


def build_app(service: Service) -> FastAPI:
    """Return the application of a service."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(_routes(service))

    @app.get("/healthz")
    async def health() -> Response:
        state = "draining" if service.draining else "ok"
        return JSONResponse({"status": state}, 503 if service.draining else 200)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return _problem(refusal)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return _problem(Refusal(error.status_code, f"{request.method} is not possible here"))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return _problem(Refusal(400, "the client left"))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _problem(Refusal(500, "the service failed; its log says how"))

    return app


def _routes(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", dependencies=[Depends(_async(service.check_token))])

    @routes.get("/info")
    async def info() -> Response:
        return JSONResponse(service.info.model_dump())

    @routes.post("/references/missing")
    async def missing(request: Request) -> Response:
        async with service.place(request):
            wanted = parse(References, await _json(service, request))
            return JSONResponse({"sha256": service.store.missing(wanted.sha256)})

    @routes.put("/references/{sha256}")
    async def put(sha256: str, request: Request) -> Response:
        async with service.place(request):
            png = await service.body(request)
            _check_reference(sha256, png, service.limits.pixels)
            if not service.store.put(sha256, png):
                raise Refusal(413, "larger than all references may be together", "Raise --reference-mb.")
            return Response(status_code=204)

    @routes.post("/score")
    async def score(request: Request) -> Response:
        async with service.place(request):
            asked = await run_in_threadpool(parse, ScoreRequest, await _json(service, request))
            return JSONResponse((await _score(service, asked)).model_dump())

    return routes


def _async(check: Any) -> Any:
    """Make a dependency of a function that must run in the event loop, not in a thread."""

    async def depend(request: Request) -> None:
        check(request)

    return depend


async def _score(service: Service, asked: ScoreRequest) -> ScoreAnswer:
    if (line := service.lines.get(asked.reward)) is None:
        raise Refusal(404, f"no reward {asked.reward!r} here, only {', '.join(service.lines)}")
    if asked.digest != service.digests[asked.reward]:
        raise Refusal(
            412, f"reward {asked.reward!r} is not the one the client got to know (other fingerprint)"
        )
    names = named_references(asked)
    if absent := service.store.missing(names):
        raise Refusal(409, f"{len(absent)} references are not in store", missing=absent)
    files = {name: service.store.get(name) for name in names}
    batch = await run_in_threadpool(to_batch, asked, files, service.limits.pixels)
    try:
        scores = await asyncio.wrap_future(line.submit(batch))
    except RewardError as error:
        logger.error("%s", error, exc_info=error)
        raise Refusal(500, f"reward {asked.reward!r} failed; the service's log says how") from error
    except UserError as error:
        raise Refusal(422, error.message, error.hint) from error
    return ScoreAnswer(
        scores=[s if f else None for s, f in zip(scores.tolist(), scores.isfinite(), strict=True)]
    )


async def _json(service: Service, request: Request) -> bytes:
    """Read a JSON request; the type is required because a foreign web page could not send it unasked."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        await _discard(request, service.limits.body_bytes)
        raise Refusal(415, "the request must be application/json")
    return await service.body(request)


async def _discard(request: Request, limit: int) -> None:
    """Read a request that is refused, within limits: an answer to a client that still sends may get lost."""
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(READ_S):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    return


def _check_reference(sha256: str, png: bytes, max_pixels: int) -> None:
    if hashlib.sha256(png).hexdigest() != sha256:
        raise Refusal(422, "the content has another sha256 than the address")
    for channels in (3, 1):
        try:
            pixels = pixel_count(png, channels)
        except PictureError as error:
            problem = str(error)
            continue
        if pixels > max_pixels:
            raise Refusal(413, f"{pixels:,} pixels; the limit is {max_pixels:,}", "Raise --max-pixels.")
        return
    raise Refusal(422, problem)


def _info(name: str, line: Line) -> RewardInfo:
    reward, fingerprint = line.reward, line.reward.fingerprint()
    return RewardInfo(
        name=name,
        label=reward.name,
        kind=reward.kind,
        fingerprint=fingerprint,
        digest=digest_of(fingerprint),
    )


def _problem(refusal: Refusal) -> Response:
    title = f"refused with {refusal.status}"
    problem = Problem(
        title=title, status=refusal.status, detail=refusal.detail, hint=refusal.hint, missing=refusal.missing
    )
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(problem.model_dump(), refusal.status, headers, PROBLEM_TYPE)
