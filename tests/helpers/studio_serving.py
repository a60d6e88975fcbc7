"""Real studios on loopback: in a thread of the test, or as a process of its own."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from customized_grpo.serving.access import listen
from customized_grpo.studio.app import Studio
from customized_grpo.studio.booth import Booth
from customized_grpo.studio.control import Control
from customized_grpo.studio.guard import rules_for
from customized_grpo.studio.library import Library
from customized_grpo.studio.server import Server
from processes import CGRPO, PATIENCE_S, child_environment


@dataclass(frozen=True)
class Running:
    url: str
    studio: Studio

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE_S, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=PATIENCE_S, **options)

    def json(self, path: str) -> Any:
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def run(self, name: str) -> dict[str, Any]:
        """Return the entry of a run in the list."""
        return next(run for run in self.json("/api/list")["runs"] if run["name"] == name)


@contextlib.contextmanager
def running(
    *folders: Path, token: str | None = None, control: bool = False, booth: Booth | None = None
) -> Iterator[Running]:
    """Serve folders in a thread until the end of the block."""
    library = Library(folders)
    rules = rules_for("127.0.0.1", token, is_loopback=True)
    studio = Studio(library, rules, Control(library) if control else None, booth)
    with listen("127.0.0.1", 0) as listener:
        server = Server(studio)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        thread.start()
        try:
            end = time.monotonic() + PATIENCE_S
            while not server.started:
                assert time.monotonic() < end, "the studio does not start"
                time.sleep(0.01)
            yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", studio)
        finally:
            server.close()
            thread.join()


@contextlib.contextmanager
def process(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `cgrpo studio ARGUMENTS` on a free port; gives the process and the address that it prints."""
    child = subprocess.Popen(
        [sys.executable, *CGRPO, "studio", *arguments, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(**environment),
    )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        found = re.search(r"(http://\S+)", line)
        assert found, f"{line}{child.communicate()}"
        yield child, found[1]
    finally:
        child.kill()
        child.communicate()


class Events:
    """The events of a stream, one after the other.

    Args:
        answer: The stream.
    """

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.iter_lines()

    def next(self, wanted: str) -> Any:
        """Return the data of the next event of a name; passes over others."""
        name = ""
        for line in self._lines:
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and name == wanted:
                return json.loads(line.removeprefix("data: "))
        raise AssertionError(f"the stream ended without {wanted}")


@contextlib.contextmanager
def stream(url: str, **options: Any) -> Iterator[Events]:
    """Follow a stream until the end of the block."""
    with httpx.stream("GET", url, timeout=PATIENCE_S, **options) as answer:
        assert answer.status_code == 200, answer.read()
        yield Events(answer)
