"""The reward service as a web application: access, limits, and the handler of each address."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from customized_grpo.errors import UserError
from customized_grpo.rewards.base import RewardError, fingerprint_of, is_groupwise
from customized_grpo.rewards.service.parsing import Refusal, measure, named_references, parse
from customized_grpo.rewards.service.png import PngError, pixel_count
from customized_grpo.rewards.service.protocol import (
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
from customized_grpo.rewards.service.queue import RequestQueue
from customized_grpo.rewards.service.references import ReferenceStore

logger = logging.getLogger(__name__)

READ_S = 10.0  # for a client to send its request, and as many more as `READ_RATE` allows
READ_RATE = 256 << 10  # bytes a second that a client must send at least
IN_MEMORY = 2  # requests of the largest number of pixels that are decoded at once, in all
RETRY_AFTER_S = 1


@dataclass(frozen=True)
class Limits:
    """Bounds of the requests.

    Attributes:
        body_bytes: Largest request.
        pixels: Largest number of pixels of a request in all.
        waiting: Requests accepted and not yet answered; more are refused with 503. Bodies that arrive have
            together the memory of as many.
        reference_bytes: References kept, in all.
    """

    body_bytes: int
    pixels: int
    waiting: int
    reference_bytes: int


class Service:
    """The state of the service; only its event loop uses it.

    Args:
        queues: One queue per reward, by the name that requests use.
        settings: `registry.scoring_settings` of each reward, by the same names.
        limits: Bounds of the requests.
        token: What a client must present; None: nothing is needed.
    """

    def __init__(
        self,
        queues: Mapping[str, RequestQueue],
        settings: Mapping[str, dict[str, str]],
        limits: Limits,
        token: str | None,
    ) -> None:
        self.queues = queues
        self.limits = limits
        self._token = token
        self.store = ReferenceStore(limits.reference_bytes)
        self.accepted = 0
        self.draining = False
        self.pixels = PixelBudget(IN_MEMORY * limits.pixels)
        self._buffered = 0
        rewards = [_info(name, queue, settings[name]) for name, queue in queues.items()]
        merge = max(queue.merge for queue in queues.values())
        self.info = Info(protocol=PROTOCOL, rewards=rewards, merge=merge)
        self.digests = {reward.name: reward.digest for reward in rewards}

    def check_token(self, request: Request) -> None:
        """Refuse a request without the token; the comparison takes constant time."""
        if self._token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._token.encode()):
            raise Refusal(
                401, "the token is missing or wrong", "The client sends what executor.token_env names."
            )

    def problem(self) -> str | None:
        """Fail requests to hanging rewards; return what is wrong with the service, or None."""
        problems = [queue.watch() for queue in self.queues.values()]
        return "; ".join(filter(None, problems)) or None

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places for requests inside the block; refuse if none is free.

        A place is for a request whose body is here: slow clients hold none.
        """
        if self.accepted >= self.limits.waiting:
            raise Refusal(503, f"{self.accepted} requests wait already", retry_after=RETRY_AFTER_S)
        self.accepted += 1
        try:
            yield
        finally:
            self.accepted -= 1

    async def body(self, request: Request) -> bytes:
        """Return the body of a request; refuse one over the limit or too slow."""
        # From the header, before a byte of the body is taken.
        await self._check_before_reading(request)
        size = 0
        parts = []
        begun = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(begun + READ_S) as timeout:
                async for part in request.stream():
                    size += len(part)
                    self._buffered += len(part)
                    if size > self.limits.body_bytes:
                        raise self._too_large()
                    # Many requests that are each within their limit may still fill the memory together.
                    if self._buffered > self.limits.waiting * self.limits.body_bytes:
                        raise Refusal(503, "too many requests arrive at once", retry_after=RETRY_AFTER_S)
                    parts.append(part)
                    # Every part buys time: a slow client is served, a stalled one is not.
                    timeout.reschedule(begun + READ_S + size / READ_RATE)
        except TimeoutError as error:
            raise Refusal(408, "the request arrived too slowly") from error
        finally:
            self._buffered -= size
        return b"".join(parts)

    async def _check_before_reading(self, request: Request) -> None:
        limit = self.limits.body_bytes
        if self.draining:
            await _discard(request, limit)
            raise Refusal(503, "the service is shutting down", retry_after=RETRY_AFTER_S)
        if int(request.headers.get("content-length", 0)) > limit:
            await _discard(request, limit)
            raise self._too_large()

    def _too_large(self) -> Refusal:
        return Refusal(
            413,
            f"the request has more than {self.limits.body_bytes:,} bytes",
            "Ask about fewer images at once (rollout.batch_size), or raise the service's --max-body-mb.",
        )


class PixelBudget:
    """A bound of the pixels that are decoded at once; those who want some wait, in the order they came.

    Args:
        pixels: How many in all.
    """

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._turn = asyncio.Lock()
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, pixels: int) -> AsyncIterator[None]:
        """Have memory for so many pixels inside the block."""
        async with self._turn, self._changed:  # one after the other, or large requests would never get it
            await self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            async with self._changed:
                self._free += pixels
                self._changed.notify_all()


def build_app(service: Service) -> FastAPI:
    """Return the application of a service."""
    # FastAPI's pages would describe the service to strangers, with scripts from another host
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(_routes(service))

    @app.get("/healthz")
    async def health() -> Response:
        if service.draining:
            return JSONResponse({"status": "draining"}, 503)
        if (problem := service.problem()) is not None:
            return JSONResponse({"status": "failing", "reason": problem}, 503)
        return JSONResponse({"status": "ok"})

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
        body = await _json(service, request)
        with service.place():
            references = parse(References, body)
            return JSONResponse({"sha256": service.store.missing(references.sha256)})

    @routes.put("/references/{sha256}")
    async def put(sha256: str, request: Request) -> Response:
        png = await service.body(request)
        with service.place():
            _check_reference(sha256, png, service.limits.pixels)
            if not service.store.put(sha256, png):
                raise Refusal(413, "larger than the whole store of references", "Raise --reference-mb.")
            return Response(status_code=204)

    @routes.post("/score")
    async def score(request: Request) -> Response:
        body = await _json(service, request)
        with service.place():
            message = await run_in_threadpool(parse, ScoreRequest, body)
            return JSONResponse((await _score(service, message)).model_dump())

    return routes


def _async(check: Any) -> Any:
    """Return a dependency that calls `check` in the event loop; FastAPI runs a plain function in a thread."""

    async def depend(request: Request) -> None:
        check(request)

    return depend


async def _score(service: Service, request: ScoreRequest) -> ScoreAnswer:
    queue = service.queues.get(request.reward)
    if queue is None:
        raise Refusal(404, f"no reward {request.reward!r} here, only {', '.join(service.queues)}")
    if request.digest != service.digests[request.reward]:
        raise Refusal(
            412, f"reward {request.reward!r} is not the one the client got to know (other fingerprint)"
        )
    names = named_references(request)
    missing = service.store.missing(names)
    if missing:
        raise Refusal(409, f"{len(missing)} references are not stored", missing=missing)
    # nothing was awaited since `missing`, so no other request can have pushed one of them out
    files = {name: service.store.get(name) for name in names}
    # in a thread, like decoding: base64 of many images would hold up the loop
    images = await run_in_threadpool(measure, request, files, service.limits.pixels)
    try:
        async with service.pixels.hold(images.pixels):
            batch = await run_in_threadpool(images.batch)
            scores = await asyncio.wrap_future(queue.submit(batch))
    except RewardError as error:
        logger.error("%s", error, exc_info=error)
        raise Refusal(500, f"reward {request.reward!r} failed; the service's log says how") from error
    except UserError as error:
        raise Refusal(422, error.message, error.hint) from error
    # JSON has no NaN: a sample without a score is null.
    return ScoreAnswer(scores=[score if math.isfinite(score) else None for score in scores.tolist()])


async def _json(service: Service, request: Request) -> bytes:
    """Return the body of a JSON request; the type is required, because no foreign web page can send it."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        await _discard(request, service.limits.body_bytes)
        raise Refusal(415, "the request must be application/json")
    return await service.body(request)


async def _discard(request: Request, limit: int) -> None:
    """Read the rest of a refused request, within limits: a client that still sends might miss the answer."""
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(READ_S):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    return


def _check_reference(sha256: str, png: bytes, max_pixels: int) -> None:
    if hashlib.sha256(png).hexdigest() != sha256:
        raise Refusal(422, "the sha256 of the content differs from the one in the address")
    # A reference or a mask: what it is, only the request says that names it.
    for channels in (3, 1):
        try:
            pixels = pixel_count(png, channels)
        except PngError as error:
            problem = str(error)
            continue
        if pixels > max_pixels:
            raise Refusal(413, f"{pixels:,} pixels; the limit is {max_pixels:,}", "Raise --max-pixels.")
        return
    raise Refusal(422, problem)


def _info(name: str, queue: RequestQueue, settings: dict[str, str]) -> RewardInfo:
    reward = queue.reward
    fingerprint = fingerprint_of(reward)
    return RewardInfo(
        name=name,
        label=reward.name,
        kind=reward.kind,
        fingerprint=fingerprint,
        digest=digest_of(fingerprint),
        groupwise=is_groupwise(reward),
        settings=settings,
    )


def _problem(refusal: Refusal) -> Response:
    title = f"refused with {refusal.status}"
    problem = Problem(
        title=title, status=refusal.status, detail=refusal.detail, hint=refusal.hint, missing=refusal.missing
    )
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    if refusal.status == 408:
        headers["Connection"] = "close"  # the rest of the request may still come
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(problem.model_dump(), refusal.status, headers, PROBLEM_TYPE)
