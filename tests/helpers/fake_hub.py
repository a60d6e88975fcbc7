"""A hub of this machine: takes the calls of huggingface_hub's uploads, and keeps what was committed."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_tests"


class FakeHub:
    """What the server keeps.

    Attributes:
        url: Its address.
        created: Bodies of the calls that made a repository.
        files: Content of the committed files, by repository and path.
        messages: Messages of the commits.
        refuses: A status with which it refuses commits; None takes them.
    """

    def __init__(self) -> None:
        self.url = ""
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.refuses: int | None = None

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return the status and the answer to a call."""
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "owner", "auth": {"type": "access_token"}}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            made = json.loads(body)
            self.created.append(made)
            name = f"{made.get('organization') or 'owner'}/{made['name']}"
            return 200, {"url": f"{self.url}/{name}", "name": name}
        repository = path.removeprefix("/api/models/").partition("/preupload/")[0].partition("/commit/")[0]
        if "/preupload/" in path:
            # all of it in the commit itself, as the hub has it for small files
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return 200, {"files": [file | {"shouldIgnore": False} for file in files]}
        if "/commit/" in path:
            if self.refuses is not None:
                return self.refuses, {"error": "no"}
            self._commit(repository, body)
            return 200, {
                "commitUrl": f"{self.url}/{repository}/commit/abc",
                "commitOid": "abc",
                "success": True,
            }
        return 404, {"error": f"the fake hub does not know {path}"}

    def _commit(self, repository: str, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.messages.append(value["summary"])
            elif entry["key"] == "file":
                assert value["encoding"] == "base64"
                self.files[f"{repository}/{value['path']}"] = base64.b64decode(value["content"])


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve a hub inside the block; calls without TOKEN are refused."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") == f"Bearer {TOKEN}":
                status, answer = hub.answer(self.path.partition("?")[0], body)
            else:
                status, answer = 401, {"error": "Invalid username or password."}
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    # the interval is what `shutdown` waits for; half a second by default
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
