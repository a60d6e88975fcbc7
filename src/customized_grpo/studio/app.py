"""The studio as a web application: its addresses, and what each answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from customized_grpo.errors import UserError
from customized_grpo.pages.page import TEMPLATES
from customized_grpo.studio import views
from customized_grpo.studio.booth import Answer, Booth, BoothView, ItemView, ResultsView
from customized_grpo.studio.control import Control
from customized_grpo.studio.guard import Guard, Rules, problem
from customized_grpo.studio.library import Comparison, Library, Run
from customized_grpo.studio.stream import LIST_POLL_S, POLL_S, Follower, ListFollower, RunFollower, events

LOOK = ("charts.css", "base.css", "report.css")
"""Style sheets of the report."""

STATIC = Path(__file__).parent / "static"

MAX_STREAMS = 64
"""Browsers that are followed at once; each costs a look at the files several times a second."""

MAX_RUNS = 12
"""Runs in one view; more lines cannot be told apart."""

PAGE_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'self'"
)
"""Of a page that holds everything, as `cgrpo compare` writes it: its own styles, no script, no connection."""


class Token(BaseModel):
    """What the page that asks for the token sends."""

    token: str


class Start(BaseModel):
    """A new run."""

    recipe: str
    name: str
    settings: list[str] = []


class Stop(BaseModel):
    """A run to stop, by its id."""

    run: str


class Resume(BaseModel):
    """A run to go on with, by its id."""

    run: str
    settings: list[str] = []


class Studio:
    """The state of a studio.

    Args:
        library: Its runs and comparisons.
        rules: Who may ask.
        control: What starts and stops runs; None: nothing may be.
        booth: The vote; None: there is none.

    Attributes:
        is_closing: Whether streams must end, because the server does.
    """

    def __init__(
        self, library: Library, rules: Rules, control: Control | None = None, booth: Booth | None = None
    ) -> None:
        self.library = library
        self.rules = rules
        self.control = control
        self.booth = booth
        self.is_closing = False
        self.streams = 0

    def run(self, run_id: str) -> Run:
        """Return a run.

        Raises:
            HTTPException: There is none with this id.
        """
        run = self.library.run(run_id)
        if run is None:
            raise HTTPException(404, "there is no such run in the folders of this studio")
        return run

    def comparison(self, comparison_id: str) -> Comparison:
        """Return a comparison.

        Raises:
            HTTPException: There is none with this id.
        """
        comparison = self.library.comparison(comparison_id)
        if comparison is None:
            raise HTTPException(404, "there is no such comparison in the folders of this studio")
        return comparison


def build_app(studio: Studio) -> FastAPI:
    """Return the application of a studio."""
    # FastAPI's pages would load scripts from another host
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(_page_routes(studio))
    app.include_router(_list_routes(studio))
    app.include_router(_run_routes(studio))
    app.include_router(_control_routes(studio))
    app.include_router(_vote_routes(studio))
    # After the routes: /static/report.css is put together, and no file of that folder.
    app.mount("/static", StaticFiles(directory=STATIC))
    # The guard is outermost: no route is asked before it has agreed.
    app.add_middleware(Guard, rules=studio.rules, login_page=(STATIC / "login.html").read_text("utf-8"))

    @app.exception_handler(UserError)
    async def refused(request: Request, error: UserError) -> Response:
        return problem(422, error.message, error.hint)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, error.detail)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        places = {".".join(map(str, mistake["loc"])) for mistake in error.errors()}
        return problem(422, f"not as expected: {', '.join(sorted(places))}")

    return app


def _page_routes(studio: Studio) -> APIRouter:
    routes = APIRouter()
    index = (STATIC / "index.html").read_text(encoding="utf-8")

    @routes.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(index)

    @routes.post("/login")
    def login(given: Token) -> Response:
        if not studio.rules.is_token(given.token):
            return problem(401, "the token is wrong")
        answer = JSONResponse({})
        # Out of reach of scripts, and never sent along by a link from another site.
        answer.set_cookie(studio.rules.cookie_name, studio.rules.cookie(), httponly=True, samesite="strict")
        return answer

    @routes.get("/static/report.css")
    def look() -> Response:
        # the report's own files, so that the studio cannot look different
        parts = [(TEMPLATES / name).read_text(encoding="utf-8") for name in LOOK]
        return Response("\n".join(parts), media_type="text/css")

    @routes.get("/favicon.ico")
    def no_icon() -> Response:
        return Response(status_code=204)

    return routes


def _list_routes(studio: Studio) -> APIRouter:
    routes = APIRouter(prefix="/api")

    @routes.get("/list")
    def everything() -> views.ListView:
        return views.list_view(studio.library)

    @routes.get("/stream")
    async def stream(runs: Annotated[list[str] | None, Query(max_length=MAX_RUNS)] = None) -> Response:
        if studio.streams >= MAX_STREAMS:
            return problem(503, f"{studio.streams} pages are followed already", "Close some of them.")
        if runs is None:
            return _stream(studio, [ListFollower(studio.library)], LIST_POLL_S)
        # An unknown run is refused here, before the stream has begun to answer.
        return _stream(studio, [RunFollower(studio.run(run)) for run in runs], POLL_S)

    @routes.get("/comparisons/{comparison_id}/page")
    def comparison(comparison_id: str) -> HTMLResponse:
        html = views.comparison_html(studio.comparison(comparison_id))
        return HTMLResponse(html, headers={"Content-Security-Policy": PAGE_POLICY})

    return routes


def _stream(studio: Studio, followers: Sequence[Follower], poll_s: float) -> Response:
    async def text() -> AsyncIterator[str]:
        studio.streams += 1
        try:
            async for part in events(followers, poll_s, lambda: studio.is_closing):
                yield part
        finally:
            studio.streams -= 1

    return StreamingResponse(text(), media_type="text/event-stream")


def _run_routes(studio: Studio) -> APIRouter:
    routes = APIRouter(prefix="/api/runs/{run_id}")

    def html(draw: Callable[[Run], str]) -> Callable[[str], HTMLResponse]:
        return lambda run_id: HTMLResponse(draw(studio.run(run_id)))

    routes.add_api_route("/head", html(views.head_html))
    routes.add_api_route("/report", html(views.report_html))

    @routes.get("/recipe")
    def recipe(run_id: str) -> PlainTextResponse:
        return PlainTextResponse(views.recipe_text(studio.run(run_id)))

    @routes.get("/difference/{other_id}")
    def difference(run_id: str, other_id: str) -> list[views.Difference]:
        return views.differences(studio.run(run_id), studio.run(other_id))

    @routes.get("/samples")
    def samples(run_id: str) -> views.SamplesView:
        return views.samples_view(studio.run(run_id))

    @routes.get("/samples/{row}/{which}")
    def image(
        run_id: str, row: int, which: str, side: Annotated[int | None, Query(ge=16, le=4096)] = None
    ) -> Response:
        content = views.image_png(studio.run(run_id), row, which, side)
        # a slider goes back and forth over the same few images
        return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=60"})

    return routes


def _control_routes(studio: Studio) -> APIRouter:
    routes = APIRouter(prefix="/api/control")

    def control() -> Control:
        if studio.control is None:
            raise HTTPException(403, "this studio only shows runs: it was started without --control")
        return studio.control

    def view() -> views.ControlView:
        return views.control_view(studio.control, studio.library)

    @routes.get("")
    def state() -> views.ControlView:
        return view()

    @routes.post("/start")
    def start(given: Start) -> views.ControlView:
        control().start(given.recipe, given.name, given.settings)
        return view()

    @routes.post("/stop")
    def stop(given: Stop) -> views.ControlView:
        control().stop(studio.run(given.run))
        return view()

    @routes.post("/resume")
    def resume(given: Resume) -> views.ControlView:
        control().resume(studio.run(given.run), given.settings)
        return view()

    return routes


def _vote_routes(studio: Studio) -> APIRouter:
    routes = APIRouter(prefix="/api/vote")

    def booth() -> Booth:
        if studio.booth is None:
            raise HTTPException(404, "there is no vote: this studio was started without --vote")
        return studio.booth

    @routes.get("")
    def view() -> BoothView:
        return BoothView(is_on=False) if studio.booth is None else studio.booth.view()

    @routes.post("")
    def vote(given: Answer) -> BoothView:
        booth().vote(given)
        return booth().view()

    @routes.get("/items")
    def items(voter: str) -> list[ItemView]:
        return booth().items(voter)

    @routes.get("/image/{number}/{which}")
    def image(number: int, which: str, voter: str) -> Response:
        return Response(booth().image(voter, number, which), media_type="image/png")

    @routes.get("/results")
    def results() -> ResultsView:
        return booth().results()

    @routes.get("/votes.csv")
    def votes() -> Response:
        return Response(booth().csv(), media_type="text/csv")

    return routes
