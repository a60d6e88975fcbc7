"""A real HTTP server on loopback that plays an OpenAI-compatible judge, well or badly behaved."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Handler", dict[str, Any]], None]


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class JudgeServer:
    """Where the server is, what it does with a request, and what it was asked."""

    url: str
    behave: Behaviour
    requests: list[Request] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    judge: JudgeServer

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(content)
        self.judge.requests.append(Request(self.path, dict(self.headers), body))
        self.judge.behave(self, body)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(behave: Behaviour) -> Iterator[JudgeServer]:
    handler = type("OneJudge", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.judge = JudgeServer(f"http://127.0.0.1:{server.server_address[1]}/v1", behave)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield handler.judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(content: str | None, logprobs: Any = None, **message: Any) -> bytes:
    """The JSON of a chat completion."""
    message = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice]}).encode()


def tokens(*parts: str, **digits: float) -> dict[str, Any]:
    """The log-probabilities of an answer split like this; `d3=.25` says how likely a 3 was instead."""
    content = []
    for part in parts:
        odds = digits if part.strip(" :}").isdigit() else {f"d{part}": 1.0}
        top = [
            {"token": part.replace(part.strip(" :}"), name[1:]), "logprob": math.log(p)}
            for name, p in odds.items()
        ]
        own = next((item["logprob"] for item in top if item["token"] == part), -5.0)
        content.append({"token": part, "logprob": own, "bytes": None, "top_logprobs": top})
    return {"content": content, "refusal": None}


def sensible(handler: Handler, body: dict[str, Any]) -> None:
    """Judge by all that is shown: the same for the same sample, and different between samples."""
    shown = hashlib.sha256(json.dumps(body["messages"]).encode()).digest()
    weights = [1 + byte for byte in shown[:5]]
    odds = {f"d{score}": weight / sum(weights) for score, weight in enumerate(weights)}
    handler.answer(completion('{"score": 3}', tokens('{"', "score", '":', " ", "3", "}", **odds)))


def says(content: str | None, status: int = 200, logprobs: Any = None, **message: Any) -> Behaviour:
    """Always the same completion."""
    return lambda handler, _: handler.answer(completion(content, logprobs, **message), status)
