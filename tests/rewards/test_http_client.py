"""Requests stay within their limits, against real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import random
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import certifi
import httpx
import pytest

from customized_grpo.rewards.http_client import (
    HttpAnswer,
    HttpClient,
    HttpError,
    HttpSettings,
    pause_s,
    redact,
    tls_context,
)

SETTINGS = HttpSettings(timeout_s=10, retries=2, first_pause_s=0.01)
SECRET = "swordfish"
PROXY_VARIABLES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")

Handler = http.server.BaseHTTPRequestHandler
Behaviour = Callable[[Handler], None]


def answer(status: int, body: bytes = b"", **headers: str) -> Behaviour:
    def behave(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return behave


def endless(handler: Handler) -> None:
    answer(200)(handler)
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b" " * 65536)


@contextlib.contextmanager
def serving(behave: Behaviour) -> Iterator[tuple[str, list[Handler]]]:
    """Yield the address of a server, and the requests that it got."""
    requests: list[Handler] = []

    class Server(Handler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            requests.append(self)
            behave(self)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def post(url: str, settings: HttpSettings = SETTINGS, body: bytes = b"{}") -> HttpAnswer:
    async def ask() -> HttpAnswer:
        async with HttpClient(settings, SECRET) as client:
            return await client.request("POST", url, body)

    return asyncio.run(ask())


def test_secret_never_goes_to_a_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(answer(200, b"the proxy")) as (proxy, at_proxy), serving(answer(200, b"us")) as (url, here):
        for variable in PROXY_VARIABLES:
            monkeypatch.setenv(variable, proxy)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert post(url).body == b"us"
        assert at_proxy == [] and here[0].headers["Authorization"] == f"Bearer {SECRET}"
        assert post(url, replace(SETTINGS, use_proxy=True)).body == b"the proxy"


def test_certificates_are_read_once_and_those_of_the_environment_are_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    usual = tls_context()
    assert tls_context() is usual and len(usual.get_ca_certs()) > 1
    end = "-----END CERTIFICATE-----\n"
    own = tmp_path / "own.pem"
    own.write_text(Path(certifi.where()).read_text().partition(end)[0] + end)
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    assert len(tls_context().get_ca_certs()) == 1
    assert tls_context().verify_mode == ssl.CERT_REQUIRED and tls_context().check_hostname
    read: list[ssl.SSLContext] = []
    with monkeypatch.context() as patched:
        patched.setattr(httpx, "create_ssl_context", lambda: read.append(usual) or usual)

        async def open_clients() -> None:
            for _ in range(3):
                await HttpClient(SETTINGS).close()

        patched.setenv("SSL_CERT_FILE", str(tmp_path / "another.pem"))
        asyncio.run(open_clients())
    assert len(read) == 1


def test_redirect_is_an_answer_and_not_followed() -> None:
    with (
        serving(answer(200, b"secrets")) as (inside, asked),
        serving(answer(302, Location=inside)) as (url, _),
    ):
        reply = post(url)
    assert (reply.status, reply.body, reply.may_pass, asked) == (302, b"", False, [])


def test_endless_body_is_cut() -> None:
    with serving(endless) as (url, requests):
        with pytest.raises(HttpError, match="answer over 1,048,576 bytes"):
            post(url)
        assert len(requests) == 1


def test_request_over_the_limit_is_not_sent() -> None:
    with serving(answer(200)) as (url, requests):
        with pytest.raises(HttpError, match="request over 10 bytes"):
            post(url, replace(SETTINGS, max_request_bytes=10), b" " * 11)
        assert requests == []


@pytest.mark.parametrize(
    ("asked", "low", "high"),
    [
        ("7", 7, 7),
        ("100000000000", 30, 30),
        (format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True), 0, 20),
        (format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True), 30, 30),
        (format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), 0, 0),
        ("soon", 0.005, 0.02),
        ("-5", 0.005, 0.02),
        ("\xb2", 0.005, 0.02),
    ],
    ids=["seconds", "too long", "date", "late date", "past date", "word", "negative", "no ASCII digit"],
)
def test_retry_after_is_seconds_or_a_date_within_bounds(
    monkeypatch: pytest.MonkeyPatch, asked: str, low: float, high: float
) -> None:
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", note)
    with serving(answer(503, b"busy", Retry_After=asked)) as (url, requests):
        assert post(url).status == 503
    assert len(requests) == 3 and len(pauses) == 2
    assert all(low <= pause <= high for pause in pauses)


def test_pauses_double_up_to_a_bound_with_jitter_of_half() -> None:
    settings = replace(SETTINGS, first_pause_s=0.5, longest_pause_s=30)
    jitter = random.Random(0)
    for number in range(20):
        longest = min(0.5 * 2**number, 30)
        pauses = [pause_s(settings, number, None, jitter) for _ in range(50)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
        assert max(pauses) - min(pauses) > longest / 4


def test_redacted_text_is_one_short_printable_line_without_secrets() -> None:
    text = (
        f"you\nsent \x1b[31m{SECRET} Bearer abc.def and sk-12345 data:image/png;base64,AAAA= the key is wrong"
    )
    assert redact(text, SECRET, 200) == (
        "you sent \\x1b[31m[redacted] [redacted] and [redacted] [redacted] the key is wrong"
    )
    assert len(redact("x" * 1000, None, 200)) == 200
