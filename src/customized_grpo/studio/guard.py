"""Who may ask the studio: the name that it is asked by, the token, where a change comes from.

A studio on loopback needs no token, but every web page that its user opens can make the browser send
requests to it. What such a page must not do is read (DNS rebinding: its own name leads to 127.0.0.1, so the
Host header has that name) and change (its requests have its own Origin).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = ("/static/", "/login")
"""What the page that asks for the token is made of."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'self'"
)
"""No script and no style but those of the package; attributes may have styles: the charts' colours."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Rules:
    """Who may ask.

    Attributes:
        token: What a client must present; None: nothing is needed.
        names: Names and addresses that the Host header may have; None: any, which only a token makes safe.
        key: Secret of this process, from which cookies are made.
    """

    token: str | None
    names: frozenset[str] | None
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def cookie_name(self) -> str:
        """Return the name of the cookie, another in each process: the studios of a host share cookies."""
        return f"cgrpo_studio_{hashlib.sha256(self.key).hexdigest()[:8]}"

    def cookie(self) -> str:
        """Return the cookie of a browser that has shown the token.

        It is not the token: other services of the same host get the cookie as well.
        """
        assert self.token is not None
        return hmac.new(self.key, self.token.encode(), hashlib.sha256).hexdigest()

    def is_token(self, given: str) -> bool:
        """Return whether this is the token, in constant time."""
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def is_known(self, request: Request) -> bool:
        """Return whether a request has the token, as a bearer or by the cookie, or needs none."""
        if self.token is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given):
            return True
        # In constant time, as for the token.
        return hmac.compare_digest(request.cookies.get(self.cookie_name, "").encode(), self.cookie().encode())


def rules_for(host: str, token: str | None, *, is_loopback: bool) -> Rules:
    """Return the rules for an address to listen on.

    Args:
        host: The address.
        token: What a client must present; None: nothing is needed.
        is_loopback: Whether only this machine can reach the address.
    """
    # elsewhere a studio cannot know by which names it is reached, and a foreign page lacks the token
    return Rules(token, frozenset([*LOOPBACK_NAMES, host]) if is_loopback else None)


class Guard:
    """Middleware that refuses requests by the rules and adds the headers that every answer has.

    Args:
        app: The application.
        rules: Who may ask.
        login_page: What a browser without the token gets instead of the page, as HTML.
    """

    def __init__(self, app: ASGIApp, rules: Rules, login_page: str) -> None:
        self._app = app
        self._rules = rules
        self._login_page = login_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refusal(Request(scope)) or self._app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        """Return why a request is not answered; None if it is."""
        host = request.headers.get("host", "")
        # A foreign site may point its own name at this machine (DNS rebinding).
        if self._rules.names is not None and _name(f"//{host}") not in self._rules.names:
            return problem(
                403, "this name is not the studio's", "Open the address that cgrpo studio has printed."
            )
        if request.method not in ("GET", "HEAD"):
            # Browsers send it with every change; other programs need not.
            origin = request.headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != host:
                return problem(403, "the request comes from another page")
            # A form of another site cannot send JSON without asking first.
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return problem(415, "the request must be application/json")
        # not of `request.url`, of which the Host header is a part
        path = request.scope["path"]
        # The page that asks for the token must load without one.
        if path.startswith(OPEN_PATHS) or self._rules.is_known(request):
            return None
        if path == "/":
            return Response(self._login_page, 401, media_type="text/html")
        return problem(401, "the token is missing or wrong", "Log in, or send it as a bearer token.")


def _name(address: str) -> str | None:
    """Return the name or address of a network location without its port; None if there is none."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def problem(status: int, detail: str, hint: str | None = None) -> JSONResponse:
    """Return a refusal as problem JSON (RFC 9457)."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    content = {"type": "about:blank", "status": status, "detail": detail, "hint": hint}
    return JSONResponse(content, status, headers, "application/problem+json")
