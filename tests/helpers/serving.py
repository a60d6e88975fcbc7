"""Real reward services on loopback: in a thread of the test, or as a process of its own."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from customized_grpo.config.schema import RewardConfig
from customized_grpo.rewards import ScoringBatch, build_reward
from customized_grpo.rewards.registry import scoring_settings
from customized_grpo.rewards.service.app import Limits, Service
from customized_grpo.rewards.service.queue import SCORE_S, RequestQueue
from customized_grpo.rewards.service.server import Server
from customized_grpo.serving.access import listen
from processes import CGRPO, PATIENCE_S, child_environment

LIMITS = Limits(body_bytes=4 * 2**20, pixels=10**6, waiting=8, reference_bytes=10**6)


class CountedQueue(RequestQueue):
    """A queue that counts what it was given, in `submitted`."""

    submitted = 0

    def submit(self, batch: ScoringBatch) -> Future[Tensor]:
        scores = super().submit(batch)
        self.submitted += 1
        return scores


@dataclass(frozen=True)
class Running:
    url: str
    service: Service
    queues: dict[str, CountedQueue]


@contextlib.contextmanager
def running(
    configs: Sequence[RewardConfig],
    limits: Limits = LIMITS,
    *,
    token: str | None = None,
    merge: int = 0,
    port: int = 0,
    score_s: float = SCORE_S,
) -> Iterator[Running]:
    """Serve the rewards in a thread until the end of the block."""
    queues = {config.name: CountedQueue([build_reward(config)], merge, score_s) for config in configs}
    settings = {config.name: scoring_settings(config) for config in configs}
    service = Service(queues, settings, limits, token)
    with listen("127.0.0.1", port) as listener:
        server = Server(service)
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", service, queues)
        finally:
            service.draining = True
            thread.join()
            for queue in queues.values():
                queue.close()


def wait_until(condition: Any, seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@contextlib.contextmanager
def process(
    recipe: Path, *options: str, environment: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `cgrpo serve-rewards RECIPE` on a free port; gives the process and its URL."""
    command = [sys.executable, *CGRPO, "serve-rewards", str(recipe), *options]
    child = subprocess.Popen(
        [*command, *([] if "--port" in options else ["--port", "0"])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(**(environment or {})),
    )
    try:
        assert child.stdout is not None
        queue = child.stdout.readline()
        found = re.search(r"at (http://\S+)$", queue.strip())
        assert found, f"{queue}{child.communicate()}"
        yield child, found[1]
    finally:
        child.kill()
        child.communicate()
