"""A reward service under 200 clients, most of them slow or hostile, for some minutes.

    python measurements/soak_service.py                               # five minutes
    python measurements/soak_service.py --seconds 60 --clients 50 --json numbers.json

A real `cgrpo serve-rewards` on loopback. Two in five clients are honest: they ask for scores known before and
compare them. The others send headers or bodies byte by byte, images and JSON that would unpack to gigabytes,
wrong tokens, or leave in the middle. At the end SIGTERM comes under this load. Exit status 1 if a promise was
broken: a wrong score, an honest client without an answer in a minute, memory beyond its bound, a health check
that failed or was late, an answer to a hostile request that is not a refusal, a slow end.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import re
import secrets
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import torch

from customized_grpo.pixels import encode_png
from customized_grpo.rewards.service.protocol import Sample, ScoreRequest, to_base64

RECIPE = """
model: {path: toybox, device: cpu}
data: {kind: toybox}
rewards: [{name: dino, path: toybox, segment: none}]
"""
MEGABYTE = 2**20
BODY_MB, PIXELS, QUEUE = 8, 4 * 2**20, 16
MEMORY_MB = 1024
"""Growth that is allowed: bodies and pixels in memory, see service/README.md, and what torch keeps."""

HEALTH_S = 5.0  # a health check that takes longer is as good as none
END_S = 25.0
SERVED_S = 60.0  # in which every honest client gets an answer
SIDE = 32  # pixels of an honest image

Client = Callable[["Soak"], Awaitable[None]]


@dataclass
class Soak:
    """The service under test, what clients send it, and what came of it.

    Attributes:
        url: Address of the service.
        host: Its host.
        port: Its port.
        token: Its token.
        requests: Bodies of honest requests with the scores that they must get.
        hostile: Bodies of requests that are small and would become huge, by name.
        served: Name and digest of the reward.
        counts: What happened, by client and outcome.
        answered: Correct answers by number of the honest client.
        broken: Promises that were broken; each kind once.
        is_over: Whether clients should stop.
    """

    url: str
    host: str
    port: int
    token: str
    served: tuple[str, str] = ("", "")
    requests: list[tuple[bytes, list[float]]] = field(default_factory=list)
    hostile: dict[str, bytes] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    answered: Counter[int] = field(default_factory=Counter)
    broken: set[str] = field(default_factory=set)
    is_over: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a request that is let in."""
        return {"authorization": f"Bearer {self.token}", "content-type": "application/json"}

    def expect(self, client: str, status: int, allowed: Sequence[int]) -> None:
        """Count an answer; a status that is not allowed breaks a promise, unless the service ends."""
        self.counts[f"{client}: {status}"] += 1
        if status not in allowed and not self.is_over:
            self.broken.add(f"{client} got status {status}")


def body_of(served: tuple[str, str], image: bytes, **changes: object) -> bytes:
    """Return the body of a request about one image."""
    empty = {"prompt": "a toy", "references": [], "reference_masks": None, "image_mask": None, "meta": {}}
    sample = Sample.model_validate({"image": to_base64(image), **empty, **changes})
    return ScoreRequest(reward=served[0], digest=served[1], samples=[sample]).model_dump_json().encode()


def bomb(width: int, height: int, first: tuple[int, int] | None = None) -> bytes:
    """Return a small PNG of many pixels; `first` is what a header before the real one claims."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def header(width: int, height: int) -> bytes:
        return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(height)) + packer.flush()
    claimed = b"" if first is None else header(*first)
    return b"\x89PNG\r\n\x1a\n" + claimed + header(width, height) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


async def honest(soak: Soak, number: int, http: httpx.AsyncClient) -> None:
    """Ask for scores and compare them, until the end."""
    chance = random.Random(number)
    while not soak.is_over:
        body, expected = chance.choice(soak.requests)
        try:
            answer = await http.post(f"{soak.url}/v1/score", content=body, headers=soak.headers)
        except httpx.TransportError as error:
            soak.counts[f"honest: {type(error).__name__}"] += not soak.is_over
            await asyncio.sleep(0.2)
            continue
        soak.expect("honest", answer.status_code, (200, 503))
        if answer.status_code != 200:
            await asyncio.sleep(chance.uniform(0.2, 1.0))
        elif answer.json()["scores"] == expected:
            soak.answered[number] += 1
        else:
            soak.broken.add(f"wrong scores: {answer.json()['scores']} for {expected}")


async def asking(soak: Soak, client: str, body: bytes, allowed: Sequence[int], token: str) -> None:
    """Send one request again and again; only refusals are right."""
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        while not soak.is_over:
            headers = {**soak.headers, "authorization": f"Bearer {token}"}
            with suppress(httpx.TransportError):
                answer = await http.post(f"{soak.url}/v1/score", content=body, headers=headers)
                soak.expect(client, answer.status_code, allowed)
            await asyncio.sleep(2.0)


async def wrong_token(soak: Soak) -> None:
    """Send good requests with a token that is nearly right."""
    await asking(soak, "wrong token", soak.requests[0][0], (401,), soak.token[:-1] + "x")


async def huge_image(soak: Soak) -> None:
    """Send 25 megapixels in some kilobytes."""
    await asking(soak, "huge image", soak.hostile["image"], (413, 503), soak.token)


async def two_headers(soak: Soak) -> None:
    """Send 25 megapixels behind a header of 8 x 8."""
    await asking(soak, "two headers", soak.hostile["headers"], (422, 503), soak.token)


async def huge_json(soak: Soak) -> None:
    """Send JSON of millions of empty lists."""
    await asking(soak, "huge JSON", soak.hostile["json"], (413, 503), soak.token)


async def slow_header(soak: Soak) -> None:
    """Send a header that never ends."""
    await dripping(soak, "slow header", b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: ")


async def slow_body(soak: Soak) -> None:
    """Send a body that never ends, with the token."""
    head = "".join(f"{name}: {value}\r\n" for name, value in soak.headers.items())
    request = f"POST /v1/score HTTP/1.1\r\nhost: x\r\n{head}content-length: 100000\r\n\r\n{{"
    await dripping(soak, "slow body", request.encode())


async def stranger(soak: Soak) -> None:
    """Send a body that never ends, without the token."""
    request = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n{"
    await dripping(soak, "slow stranger", request)


async def dripping(soak: Soak, client: str, start: bytes) -> None:
    """Send a start, and then a byte a second until the service closes the connection."""
    while not soak.is_over:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(soak.host, soak.port)
            writer.write(start)
            begun = time.monotonic()
            try:
                while not soak.is_over:
                    await asyncio.sleep(1.0)
                    writer.write(b"a")
                    await writer.drain()
            finally:
                writer.close()
                soak.counts[f"{client}: ended"] += 1
                if time.monotonic() - begun > 30 and not soak.is_over:
                    soak.broken.add(f"{client} was not ended within 30 s")
        await asyncio.sleep(0.1)


async def leaving(soak: Soak) -> None:
    """Leave in the middle of a request, or before its answer."""
    chance = random.Random(id(soak))
    head = "".join(f"{name}: {value}\r\n" for name, value in soak.headers.items())
    while not soak.is_over:
        body = chance.choice(soak.requests)[0]
        request = f"POST /v1/score HTTP/1.1\r\nhost: x\r\n{head}content-length: {len(body)}\r\n\r\n".encode()
        with suppress(OSError):
            _, writer = await asyncio.open_connection(soak.host, soak.port)
            writer.write(request + body[: chance.choice((len(body), len(body) // 2))])
            await writer.drain()
            writer.transport.abort()
            soak.counts["leaving: left"] += 1
        await asyncio.sleep(chance.uniform(0.1, 1.0))


HOSTILE: Sequence[Client] = (
    slow_header,
    slow_body,
    stranger,
    wrong_token,
    huge_image,
    two_headers,
    huge_json,
    leaving,
)


@dataclass
class Watch:
    """What was seen of the process from outside.

    Attributes:
        memory_mb: Resident memory before the load, at its peak, and at its end.
        checks: Health checks.
        slowest_s: Seconds of the slowest.
    """

    memory_mb: list[float]
    checks: int = 0
    slowest_s: float = 0.0


async def watching(soak: Soak, process: int, watch: Watch) -> None:
    """Ask for the health and measure the memory, several times a second."""
    async with httpx.AsyncClient(timeout=HEALTH_S, trust_env=False) as http:
        while not soak.is_over:
            begun = time.monotonic()
            try:
                answer = await http.get(f"{soak.url}/healthz")
                if answer.status_code != 200:
                    soak.broken.add(f"health: {answer.text}")
            except httpx.HTTPError as error:
                soak.broken.add(f"health: {type(error).__name__}")
            watch.checks += 1
            watch.slowest_s = max(watch.slowest_s, time.monotonic() - begun)
            watch.memory_mb[2] = memory_mb(process)
            watch.memory_mb[1] = max(watch.memory_mb[1], watch.memory_mb[2])
            await asyncio.sleep(0.3)


def memory_mb(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


async def prepare(soak: Soak) -> None:
    """Ask for each honest request once, alone: the answers are what it must get under load."""
    async with httpx.AsyncClient(timeout=60, trust_env=False, headers=soak.headers) as http:
        info = (await http.get(f"{soak.url}/v1/info")).json()["rewards"][0]
        soak.served = info["name"], info["digest"]
        generator = torch.Generator().manual_seed(0)
        for _ in range(8):
            image = torch.randint(256, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
            # segment none compares with the reference alone, so every image needs one: itself turned round
            reference = encode_png(image.flip(2))
            sha256 = await upload(http, soak.url, reference)
            body = body_of(soak.served, encode_png(image), references=[sha256])
            answer = await http.post(f"{soak.url}/v1/score", content=body)
            answer.raise_for_status()
            soak.requests.append((body, answer.json()["scores"]))
    soak.hostile["image"] = body_of(soak.served, bomb(5_000, 5_000))
    soak.hostile["headers"] = body_of(soak.served, bomb(5_000, 5_000, (8, 8)))
    lists = b'"meta":{"x":[' + b"[]," * 2_000_000 + b"1]}"
    soak.hostile["json"] = soak.requests[0][0].replace(b'"meta":{}', lists)


async def upload(http: httpx.AsyncClient, url: str, png: bytes) -> str:
    """Upload a reference; return its sha256."""
    sha256 = hashlib.sha256(png).hexdigest()
    (await http.put(f"{url}/v1/references/{sha256}", content=png)).raise_for_status()
    return sha256


async def load(soak: Soak, process: subprocess.Popen[str], clients: int, seconds: float) -> dict[str, object]:
    """Run all clients for some seconds, end the service under them; return figures."""
    await prepare(soak)
    before = memory_mb(process.pid)
    watch = Watch([before, before, before])
    honest_ones = max(1, clients * 2 // 5)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=120, trust_env=False, limits=limits) as http:
        tasks = [asyncio.create_task(honest(soak, number, http)) for number in range(honest_ones)]
        for number in range(clients - honest_ones):
            tasks.append(asyncio.create_task(HOSTILE[number % len(HOSTILE)](soak)))
        watcher = asyncio.create_task(watching(soak, process.pid, watch))
        await asyncio.sleep(seconds)
        soak.is_over = True
        await watcher
        begun = time.monotonic()
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, END_S)
        end_s = time.monotonic() - begun
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
    judge(soak, watch, honest_ones if seconds >= SERVED_S else 0, process.poll())
    return {
        "clients": clients,
        "honest": honest_ones,
        "seconds": seconds,
        "answers": soak.answered.total(),
        "answers of the least served": min(soak.answered[number] for number in range(honest_ones)),
        "counts": dict(sorted(soak.counts.items())),
        "service": {**asdict(watch), "end_s": end_s, "exit_status": process.poll()},
        "broken": sorted(soak.broken),
    }


def judge(soak: Soak, watch: Watch, honest_ones: int, status: int | None) -> None:
    """Add the promises that only the whole shows to be broken, of so many honest clients."""
    unserved = sum(soak.answered[number] == 0 for number in range(honest_ones))
    if unserved:
        soak.broken.add(f"{unserved} honest clients got no answer")
    growth = watch.memory_mb[1] - watch.memory_mb[0]
    if growth > MEMORY_MB:
        soak.broken.add(f"memory grew by {growth:.0f} MiB")
    if status is None:
        soak.broken.add(f"SIGTERM did not end it within {END_S:g} s")
    elif status != 0:
        soak.broken.add(f"it ended with status {status}")


def run(clients: int, seconds: float) -> dict[str, object]:
    """Start a service, load it and return figures; `broken` lists the promises that did not hold."""
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(RECIPE)
        limits = {"--port": 0, "--max-body-mb": BODY_MB, "--max-pixels": PIXELS, "--queue": QUEUE}
        options: list[str] = []
        for name, limit in limits.items():
            options += [name, str(limit)]
        process = subprocess.Popen(
            [sys.executable, "-m", "customized_grpo", "serve-rewards", str(recipe), *options],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CGRPO_TOKEN": token},
        )
        try:
            assert process.stdout is not None
            said = re.search(r"at (http://(\S+):(\d+))$", process.stdout.readline().strip())
            assert said is not None, "the service did not start"
            soak = Soak(said[1], said[2], int(said[3]), token)
            return asyncio.run(load(soak, process, clients, seconds))
        finally:
            process.kill()
            process.communicate()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak and print its figures; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long the clients go on")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    figures = run(options.clients, options.seconds)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    return 1 if figures["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
