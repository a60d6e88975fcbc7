"""Images per second that a reward service scores for clients in parallel, and how long the clients wait.

    python measurements/reward_service.py                         # dino of ToyBox, 512 px, batches of 12
    python measurements/reward_service.py --batch 2 --merge 24 --json numbers.json

A real `cgrpo serve-rewards` on loopback, and clients in processes of their own that send images encoded
before. Three parts: clients in parallel without limits; more clients than the queue holds, with the
client's own retries left out, to count the refusals; and SIGTERM under load, after which every accepted
request must still be answered. Exit status 1 if a score was lost or differed from those of another request.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from customized_grpo.rewards import ScoringBatch
from customized_grpo.rewards.executors.upload import encode

RECIPE = """
model: {path: toybox, device: cpu}
data: {kind: toybox}
rewards: [{name: dino, path: toybox, segment: none}]
"""
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Answered:
    """One request and its response.

    Attributes:
        status: HTTP status; 0 if the connection was refused or lost.
        seconds: From sending to the response.
        scores: Empty unless the status is 200.
    """

    status: int
    seconds: float
    scores: tuple[float, ...]


@contextmanager
def service(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the service on a free port inside the block; yield the process and its URL."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(RECIPE)
        command = [sys.executable, "-m", "customized_grpo", "serve-rewards", str(recipe)]
        child = subprocess.Popen([*command, "--port", "0", *options], stdout=subprocess.PIPE, text=True)
        try:
            assert child.stdout is not None
            address = re.search(r"at (http://\S+)$", child.stdout.readline().strip())
            assert address, "the service did not start"
            yield child, address[1]
        finally:
            child.kill()
            child.wait()


def request_body(url: str, batch: int, size: int) -> bytes:
    """Upload a reference and return a request about `batch` images of size x size pixels."""
    noise = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch + 1, 3, 16, 16, generator=noise)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    images = (smooth + 0.02 * torch.randn(smooth.shape, generator=noise)).clamp(0, 1)  # a photo's grain
    reward = httpx.get(f"{url}/v1/info").json()["rewards"][0]
    samples = ScoringBatch(
        images[:batch], ["a toy"] * batch, [[images[batch]]] * batch, None, None, [{}] * batch
    )
    upload = encode(samples, reward["name"], reward["digest"])
    for sha256, png in upload.files.items():
        httpx.put(f"{url}/v1/references/{sha256}", content=png).raise_for_status()
    return upload.body


def client(url: str, body: bytes, requests: int, begin: Any, results: Any) -> None:
    """Send the same request again and again, each as soon as the last one is answered."""
    answers = []
    with httpx.Client(timeout=120) as http:
        begin.wait()
        for _ in range(requests):
            since = time.perf_counter()
            try:
                answer = http.post(f"{url}/v1/score", content=body, headers=JSON)
                scores = tuple(answer.json()["scores"]) if answer.status_code == 200 else ()
                answers.append(Answered(answer.status_code, time.perf_counter() - since, scores))
            except httpx.TransportError:
                answers.append(Answered(0, time.perf_counter() - since, ()))
    results.put(answers)


def load(
    url: str, body: bytes, clients: int, requests: int, meanwhile: Callable[[], None] = lambda: None
) -> tuple[list[Answered], float]:
    """Let clients send requests at once; return all answers and the seconds it took."""
    spawn = multiprocessing.get_context("spawn")
    begin = spawn.Barrier(clients + 1)
    results = spawn.Queue()
    processes = []
    for _ in range(clients):
        process = spawn.Process(target=client, args=(url, body, requests, begin, results))
        process.start()
        processes.append(process)
    begin.wait()
    since = time.perf_counter()
    meanwhile()
    answers: list[Answered] = []
    for _ in processes:  # each puts all of its answers at once, at its end
        answers += results.get()
    seconds = time.perf_counter() - since
    for process in processes:
        process.join()
    return answers, seconds


def throughput(
    counts: Sequence[int], requests: int, batch: int, size: int, merge: int
) -> list[dict[str, Any]]:
    """Measure images per second and latencies for each number of clients."""
    rows = []
    with service("--queue", "64", "--merge", str(merge)) as (_, url):
        body = request_body(url, batch, size)
        load(url, body, 1, 2)  # warm up
        for clients in counts:
            answers, seconds = load(url, body, clients, requests)
            waits = sorted(1000 * answer.seconds for answer in answers)
            cuts = statistics.quantiles(waits, n=100, method="inclusive")
            rows.append(
                {
                    "clients": clients,
                    "requests": len(answers),
                    "answered": sum(answer.status == 200 for answer in answers),
                    "distinct_scores": len({answer.scores for answer in answers}),
                    "body_mb": len(body) / 1e6,
                    "images_per_s": len(answers) * batch / seconds,
                    "p50_ms": cuts[49],
                    "p95_ms": cuts[94],
                    "p99_ms": cuts[98],
                }
            )
    return rows


def back_pressure(queue: int, clients: int, requests: int, batch: int, size: int) -> dict[str, Any]:
    """Count answers and refusals of more clients than the queue holds."""
    with service("--queue", str(queue)) as (_, url):
        answers, _ = load(url, request_body(url, batch, size), clients, requests)
    refused = [1000 * answer.seconds for answer in answers if answer.status == 503]
    return {
        "queue": queue,
        "clients": clients,
        "answered": sum(answer.status == 200 for answer in answers),
        "refused": len(refused),
        "other": sum(answer.status not in (200, 503) for answer in answers),
        "refused_p50_ms": statistics.median(refused) if refused else None,
    }


def shutdown(clients: int, batch: int, size: int) -> dict[str, Any]:
    """Send SIGTERM while clients wait; count the outcomes of their requests."""
    with service("--queue", "64") as (child, url):
        body = request_body(url, batch, size)

        def terminate() -> None:
            time.sleep(2 * clients * answer_s)  # time for about two answers to each client
            child.terminate()

        (first, *_), _ = load(url, body, 1, 2)
        answer_s = first.seconds
        answers, _ = load(url, body, clients, 8, terminate)
        status = child.wait(timeout=60)
    return {
        "answered": sum(answer.status == 200 for answer in answers),
        "refused": sum(answer.status in (0, 503) for answer in answers),
        "failed": sum(answer.status not in (0, 200, 503) for answer in answers),
        "exit_status": status,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the measurements of `throughput` as aligned text."""
    lines = [f"{'clients':>8}{'images/s':>12}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}"]
    for row in rows:
        numbers = "".join(f"{row[key]:9.0f}" for key in ("p50_ms", "p95_ms", "p99_ms"))
        lines.append(f"{row['clients']:8}{row['images_per_s']:12.1f}{numbers}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and say by the exit status whether every accepted request got its scores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8], help="clients in parallel")
    parser.add_argument("--requests", type=int, default=20, help="requests of each client (default 20)")
    parser.add_argument("--batch", type=int, default=12, help="images of a request (default 12)")
    parser.add_argument("--size", type=int, default=512, help="height and width, in pixels (default 512)")
    parser.add_argument("--merge", type=int, default=0, help="samples the service may score together")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args(arguments)
    batch, size = options.batch, options.size
    rows = throughput(options.clients, options.requests, batch, size, options.merge)
    print(table(rows))
    pressure = back_pressure(2, 6, options.requests, batch, size)
    print("back-pressure: {answered} answered, {refused} refused, {other} other".format(**pressure))
    ended = shutdown(4, batch, size)
    print("shutdown: {answered} answered, {refused} refused, {failed} failed".format(**ended))
    result = {
        "batch": batch,
        "size": size,
        "merge": options.merge,
        "parallel": rows,
        "back_pressure": pressure,
        "shutdown": ended,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    whole = all(row["answered"] == row["requests"] for row in rows)
    exact = options.merge > 0 or all(row["distinct_scores"] == 1 for row in rows)
    kept = pressure["other"] == 0 and ended["failed"] == 0 and ended["exit_status"] == 0
    return 0 if whole and exact and kept else 1


if __name__ == "__main__":
    sys.exit(main())
