"""Clients that are slow, many or malicious, and rewards that never come back."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

import serving
from customized_grpo.rewards.service import app, server
from customized_grpo.rewards.service.app import Limits, PixelBudget
from customized_grpo.rewards.service.parsing import Refusal, measure, parse
from customized_grpo.rewards.service.png import PngError, decode_png, size
from customized_grpo.rewards.service.protocol import Sample, ScoreRequest, to_base64
from customized_grpo.serving import connections
from service_requests import HEAD, JSON, MOODY, ask, is_problem, png

pytestmark = pytest.mark.slow


def address(service: Any) -> tuple[str, int]:
    return "127.0.0.1", int(service.url.rpartition(":")[2])


def is_closed(client: socket.socket) -> bool:
    """Whether the service has closed a connection; waits for it as long as the socket's timeout."""
    try:
        while client.recv(4096):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.fixture
def small() -> Iterator[Any]:
    with serving.running([MOODY], Limits(2**20, 10**6, 2, 10**6)) as service:
        yield service


def test_slow_bodies_hold_no_place_and_are_ended(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "READ_S", 0.5)
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(address(small), 10)) for _ in range(8)]
        for number, client in enumerate(slow):
            client.sendall(HEAD + b"content-length: 1000\r\n\r\n" + b"{" * (number % 2))
        assert ask(small, {}).status_code == 200
        assert small.service.accepted == 0
        assert slow[0].recv(4096).startswith(b"HTTP/1.1 408 ")
        assert all(map(is_closed, slow))


def test_a_slow_header_is_ended_also_on_a_connection_in_use(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADER_S", 0.3)
    with (
        socket.create_connection(address(small), 10) as silent,
        socket.create_connection(address(small), 10) as slow,
        socket.create_connection(address(small), 10) as used,
    ):
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        used.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b" 200 " in used.recv(4096)
        used.sendall(b"GET ")
        assert is_closed(silent) and is_closed(slow) and is_closed(used)


def test_many_connections_of_one_client_keep_nobody_out(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_OF_A_CLIENT", 4)
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(address(small), 5)) for _ in range(12)]
        assert ask(small, {}).status_code == 200
        for client in idle[:8]:
            assert is_closed(client)
        idle[-1].settimeout(0.2)
        assert not is_closed(idle[-1])


def test_bodies_that_arrive_have_a_bound_in_all(small: Any) -> None:
    part = b"x" * (700 << 10)
    with ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(socket.create_connection(address(small), 10))
            client.sendall(HEAD + b"content-length: %d\r\n\r\n" % (1 << 20) + part)
        serving.wait_until(lambda: small.service._buffered == 2 * len(part))
        is_problem(httpx.post(f"{small.url}/v1/score", content=part, headers=JSON), 503, "too many requests")
    serving.wait_until(lambda: small.service._buffered == 0)
    assert ask(small, {}).status_code == 200


def test_a_second_header_does_not_make_a_small_png_huge() -> None:
    large = png(size=(20, 20))
    twice = png()[:33] + large[8:]  # the signature and the header of 8 x 8, then all of the other
    assert size(twice, 3) == (8, 8)
    with pytest.raises(PngError, match="two headers"):
        decode_png(twice, 3)
    assert decode_png(png(), 3).shape == (3, 8, 8)


def request(*references: str, **sample: Any) -> ScoreRequest:
    values = {
        "image": to_base64(png()),
        "prompt": "",
        "reference_masks": None,
        "image_mask": None,
        "meta": {},
    }
    one = Sample(references=list(references), **{**values, **sample})
    return ScoreRequest(reward="x", digest="0" * 64, samples=[one])


def test_references_that_are_named_again_and_again_are_counted() -> None:
    name = "a" * 64
    files = {name: png(size=(10, 10))}
    assert measure(request(*[name] * 16), files, 200).pixels == 164
    with pytest.raises(Refusal, match="1,700 pixels"):
        measure(request(*[name] * 17), files, 200)


def test_json_that_would_be_gigabytes_of_objects_is_refused() -> None:
    body = request().model_dump_json().encode()
    parse(ScoreRequest, body)
    with pytest.raises(Refusal, match="values in its JSON"):
        parse(ScoreRequest, body.replace(b'"meta":{}', b'"meta":{"x":[' + b"[]," * 500_001 + b"1]}"))


def test_requests_wait_for_memory_in_the_order_they_came() -> None:
    async def use() -> list[str]:
        budget, order = PixelBudget(10), list[str]()

        async def hold(name: str, pixels: int) -> None:
            async with budget.hold(pixels):
                order.append(name)
                await asyncio.sleep(0.02)

        await asyncio.gather(hold("a", 6), hold("large", 10), hold("b", 1))
        return order

    assert asyncio.run(use()) == ["a", "large", "b"]


@pytest.mark.parametrize("mood", ["leaves", "is interrupted"])
def test_a_reward_that_raises_an_exit_fails_its_request_alone(mood: str) -> None:
    with serving.running([MOODY]) as service:
        is_problem(ask(service, {"meta": {"mood": mood}}), 500, "failed; the service's log says how")
        assert ask(service, {"meta": {"mood": "2"}}).json() == {"scores": [2.0]}
        assert httpx.get(f"{service.url}/healthz").status_code == 200


def test_a_reward_that_hangs_is_said_to_and_is_healthy_when_it_is_back() -> None:
    with serving.running([MOODY], score_s=0.3) as service, ThreadPoolExecutor(1) as pool:
        hanging = {"meta": {"mood": "hangs", "seconds": 2.0}}
        first = pool.submit(ask, service, hanging)
        serving.wait_until(lambda: service.queues[MOODY.name].submitted == 1)
        is_problem(ask(service, {}), 500, "failed")  # waited behind it
        is_problem(first.result(), 500, "failed")
        health = httpx.get(f"{service.url}/healthz")
        assert health.status_code == 503
        assert health.json() == {"status": "failing", "reason": "reward 'own' has not answered for 0.3 s"}
        serving.wait_until(lambda: httpx.get(f"{service.url}/healthz").status_code == 200)
        assert ask(service, {}).json() == {"scores": [0.0]}


@pytest.mark.slow
def test_a_signal_ends_a_service_whose_reward_hangs(tmp_path: Any) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {path: toybox, device: cpu}\ndata: {kind: toybox}\nrewards: [{name: 'own_rewards:Moody'}]\n"
    )
    with serving.process(recipe, "--score-s", "1") as (child, url), ThreadPoolExecutor(1) as pool:
        served = httpx.get(f"{url}/v1/info").json()["rewards"][0]
        sample = request(meta={"mood": "hangs", "seconds": 600}).samples[0]
        body = ScoreRequest(reward=served["name"], digest=served["digest"], samples=[sample])
        content = body.model_dump_json().encode()
        answer = pool.submit(httpx.post, f"{url}/v1/score", content=content, headers=JSON, timeout=60)
        assert answer.result().status_code == 500
        assert httpx.get(f"{url}/healthz").json()["status"] == "failing"
        begun = time.monotonic()
        child.terminate()
        assert child.wait(timeout=60) == 1
        assert time.monotonic() - begun < server.DRAIN_S
        assert child.stderr is not None and "never answered" in child.stderr.read()


def test_a_signal_does_not_wait_for_ever_for_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DRAIN_S", 0.3)
    with serving.running([MOODY]) as service, ThreadPoolExecutor(1) as pool:
        sample = {"meta": {"mood": "hangs", "seconds": 3.0}}
        pool.submit(ask, service, sample)
        serving.wait_until(lambda: service.queues[MOODY.name].submitted == 1)
        service.service.draining = True
        serving.wait_until(lambda: not serves(service))
        assert service.service.accepted == 1


def serves(service: Any) -> bool:
    try:
        with socket.create_connection(address(service), 1):
            return True
    except OSError:
        return False
