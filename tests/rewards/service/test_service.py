"""The service against clients that nobody vouches for; every server is real and on loopback."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
import tiny_rewards as tiny
from customized_grpo.config.schema import RewardConfig
from customized_grpo.rewards.executors import in_8_bits
from customized_grpo.rewards.executors.upload import Upload, encode
from customized_grpo.rewards.service.protocol import to_base64
from processes import PATIENCE_S
from service_requests import HEAD, JSON, MOODY, ask, is_problem, png

pytestmark = pytest.mark.slow

TOKEN = "correct-horse-battery-staple"
DINO = RewardConfig(name="dino", path="toybox")


@pytest.fixture(scope="module")
def service() -> Iterator[Any]:
    with serving.running([MOODY, DINO]) as running:
        yield running


def bomb(width: int, height: int) -> bytes:
    """A few kilobytes that claim, and unpack to, many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def digest(service: Any, name: str) -> str:
    found: str = service.service.digests[name]
    return found


def test_health_and_info_say_what_is_served(service: Any) -> None:
    assert httpx.get(f"{service.url}/healthz").json() == {"status": "ok"}
    info = httpx.get(f"{service.url}/v1/info").json()
    assert [(r["name"], r["label"], r["kind"]) for r in info["rewards"]] == [
        (MOODY.name, "own", "quality"),
        ("dino", "dino", "identity"),
    ]
    assert {"weights", "preprocess", "dtype", "segment"} <= set(info["rewards"][1]["fingerprint"])


def test_scores_come_in_order_and_what_cannot_be_scored_is_null(service: Any) -> None:
    moods = [{"meta": {"mood": mood}} for mood in ("", "nan", "inf", "-inf", "2.5")]
    assert ask(service, *moods).json() == {"scores": [0.0, None, None, None, 2.5]}


def test_a_failing_reward_tells_its_client_nothing_of_the_inside(
    service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    is_problem(ask(service, {"meta": {"mood": "fails"}}), 500, "failed; the service's log says how")
    assert "/home/somebody/weights.bin" in caplog.text
    problem = is_problem(ask(service, {"meta": {"mood": "refuses", "id": "a"}}), 422, "sample 0 (row 'a')")
    assert problem["hint"] == "Give it."


@pytest.mark.parametrize(
    ("sample", "status", "detail"),
    [
        ({"image": "???"}, 422, "samples.0.image: not base64"),
        ({"image": to_base64(b"GIF89a" + bytes(40))}, 422, "samples.0.image: not a PNG"),
        ({"image": to_base64(png(kind="JPEG"))}, 422, "not a PNG"),
        ({"image": to_base64(png("RGBA"))}, 422, "not a plain RGB PNG of 8 bits"),
        ({"image": to_base64(png("L"))}, 422, "not a plain RGB PNG of 8 bits"),
        ({"image": to_base64(png("I;16"))}, 422, "not a plain RGB PNG of 8 bits"),
        ({"image": to_base64(png(size=(64, 64))[:60])}, 422, "the PNG is damaged"),
        ({"image_mask": to_base64(png())}, 422, "samples.0.image_mask: not a plain grey PNG"),
        ({"references": ["../../etc/passwd"]}, 422, "samples.0.references.0"),
        ({"references": ["file:///etc/passwd"]}, 422, "samples.0.references.0"),
        ({"references": ["0" * 64]}, 409, "1 references are not stored"),
        ({"prompt": 3}, 422, "samples.0.prompt"),
        ({"path": "x"}, 422, "samples.0.path"),
    ],
)
def test_a_bad_sample_is_refused_with_its_place(
    sample: dict[str, Any], status: int, detail: str, service: Any
) -> None:
    is_problem(ask(service, sample), status, detail)


def test_what_does_not_fit_together_is_refused(service: Any) -> None:
    other = {"image": to_base64(png(size=(8, 16)))}
    is_problem(ask(service, {}, other), 422, "one size; image has 8 x 16, 8 x 8")
    masked = {"image_mask": to_base64(png("L"))}
    is_problem(ask(service, {}, masked), 422, "image_mask must be given for all samples")
    is_problem(ask(service), 422, "samples")
    is_problem(ask(service, {}, reward="nobody"), 404, "no reward 'nobody' here")
    is_problem(ask(service, {}, digest="0" * 64), 412, "other fingerprint")
    small = {"image": to_base64(png(size=(600, 600)))}
    is_problem(ask(service, *[small] * 3), 413, "1,000,000 pixels")  # each alone would do
    assert ask(service, small, small).status_code == 200


def test_a_bomb_is_refused_without_being_unpacked(service: Any) -> None:
    import tracemalloc

    data = bomb(20_000, 5_000)  # 300 MB of pixels
    assert len(data) < 400_000
    tracemalloc.start()
    is_problem(ask(service, {"image": to_base64(data)}), 413, "more than 1,000,000 pixels in all")
    address = f"{service.url}/v1/references/{hashlib.sha256(data).hexdigest()}"
    is_problem(httpx.put(address, content=data), 413, "100,000,000 pixels; the limit is 1,000,000")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_a_reference_is_what_its_address_says_or_is_refused(service: Any) -> None:
    data, other = png(size=(9, 9)), png(size=(9, 10))
    address = f"{service.url}/v1/references/{hashlib.sha256(data).hexdigest()}"
    is_problem(httpx.put(address, content=other), 422, "the sha256 of the content differs")
    names = {"sha256": [hashlib.sha256(one).hexdigest() for one in (data, other)]}
    assert httpx.post(f"{service.url}/v1/references/missing", json=names).json() == names
    assert httpx.put(address, content=data).status_code == 204
    left = httpx.post(f"{service.url}/v1/references/missing", json=names).json()
    assert left == {"sha256": names["sha256"][1:]}
    text = b"no image"
    address = f"{service.url}/v1/references/{hashlib.sha256(text).hexdigest()}"
    is_problem(httpx.put(address, content=text), 422, "not a PNG")


def test_a_body_beyond_the_limit_is_refused_announced_or_not(service: Any) -> None:
    huge = b"x" * (4 * 2**20 + 1)
    score = f"{service.url}/v1/score"
    is_problem(httpx.post(score, content=huge, headers=JSON), 413, "more than 4,194,304 bytes")
    parts = (huge[start : start + 65536] for start in range(0, len(huge), 65536))
    is_problem(httpx.post(score, content=parts, headers=JSON), 413, "more than 4,194,304 bytes")
    is_problem(httpx.post(score, content=b"{", headers=JSON), 422, "1 mistakes in the request")
    is_problem(httpx.post(score, content=b"{}"), 415, "must be application/json")


def test_other_addresses_are_problems_too_and_nothing_documents_itself(service: Any) -> None:
    for path in ("/", "/docs", "/openapi.json", "/v1/score"):
        assert httpx.get(f"{service.url}{path}").status_code in (404, 405)


def test_nothing_but_health_is_told_without_the_token() -> None:
    with serving.running([MOODY], token=TOKEN) as service:
        assert httpx.get(f"{service.url}/healthz").status_code == 200
        for given in (
            None,
            "Bearer",
            f"Bearer {TOKEN[:-1]}",
            f"Bearer {TOKEN}x",
            f"Basic {TOKEN}",
            "Bearer \xe4",
        ):
            headers = {} if given is None else {"authorization": given.encode("latin-1")}
            for method, path in (
                ("GET", "/v1/info"),
                ("POST", "/v1/score"),
                ("POST", "/v1/references/missing"),
                ("PUT", f"/v1/references/{'0' * 64}"),
            ):
                answer = httpx.request(method, f"{service.url}{path}", headers=headers)
                is_problem(answer, 401, "the token is missing or wrong")
                assert TOKEN not in answer.text
        good = httpx.get(f"{service.url}/v1/info", headers={"authorization": f"bearer {TOKEN}"})
        assert good.status_code == 200


def request_of(service: Any, name: str, batch: Any) -> Upload:
    return encode(batch, name, digest(service, name))


def held_in(folder: Path) -> tuple[RewardConfig, Path]:
    """Return a reward that scores nothing before a file is there, and the file."""
    release = folder / "release"
    options = {"log": str(folder / "log"), "until": str(release)}
    return RewardConfig(name="own_rewards:Held", options=options), release


def test_more_than_the_queue_holds_is_told_to_come_back(tmp_path: Path) -> None:
    held, release = held_in(tmp_path)
    limits = serving.Limits(4 * 2**20, 10**6, 2, 10**6)
    with serving.running([held], limits) as service, ThreadPoolExecutor(6) as clients:
        body = request_of(service, held.name, plain(tiny.make_batch(1))).body
        post = [
            clients.submit(
                httpx.post, f"{service.url}/v1/score", content=body, headers=JSON, timeout=PATIENCE_S
            )
            for _ in range(6)
        ]
        serving.wait_until(lambda: sum(one.done() for one in post) == 4)
        release.touch()
        answers = [one.result() for one in post]
        assert sorted(answer.status_code for answer in answers) == [200] * 2 + [503] * 4
        for answer in answers:
            if answer.status_code == 503:
                is_problem(answer, 503, "2 requests wait already")
                assert answer.headers["retry-after"] == "1"
        assert httpx.get(f"{service.url}/v1/info").status_code == 200  # which waits for nobody
        assert service.service.accepted == 0


def plain(batch: Any) -> Any:
    """Leave out references, so that nothing need be uploaded first."""
    import dataclasses

    return dataclasses.replace(
        batch, references=[[] for _ in batch.references], reference_masks=None, image_masks=None
    )


@pytest.mark.parametrize("merge", [0, 4])
def test_requests_are_scored_alone_or_merged_and_each_gets_its_own(merge: int, tmp_path: Path) -> None:
    held, release = held_in(tmp_path)
    log = tmp_path / "log"
    with serving.running([held], merge=merge) as service, ThreadPoolExecutor(4) as clients:
        url = f"{service.url}/v1/score"
        batch = in_8_bits(plain(tiny.make_batch(4)))
        bodies = [request_of(service, held.name, batch.select([row])).body for row in range(4)]
        first = clients.submit(httpx.post, url, content=bodies[0], headers=JSON, timeout=None)
        serving.wait_until(log.exists)
        rest = [clients.submit(httpx.post, url, content=b, headers=JSON, timeout=None) for b in bodies[1:]]
        serving.wait_until(lambda: service.queues[held.name].submitted == 4)  # the others queue up behind it
        release.touch()
        scores = [one.result().json()["scores"][0] for one in [first, *rest]]
        assert scores == pytest.approx(batch.images.mean(dim=(1, 2, 3)).tolist(), abs=1e-6)
    assert log.read_text().split() == (["1", "3"] if merge else ["1"] * 4)


def recipe_in(folder: Path, seconds: float) -> tuple[Path, Path]:
    recipe, log = folder / "recipe.yaml", folder / "log"
    options = json.dumps({"seconds": seconds, "log": str(log)})
    recipe.write_text(
        "model: {path: toybox, device: cpu}\ndata: {kind: toybox}\n"
        f"rewards: [{{name: 'own_rewards:Slow', options: {options}}}]\n"
    )
    return recipe, log


def test_a_signal_lets_the_service_finish_what_it_accepted_and_refuse_the_rest(tmp_path: Path) -> None:
    recipe, log = recipe_in(tmp_path, 3.0)
    with serving.process(recipe) as (child, url), ThreadPoolExecutor(2) as clients:
        served = httpx.get(f"{url}/v1/info").json()["rewards"][0]
        body = encode(plain(tiny.make_batch(2)), served["name"], served["digest"]).body
        accepted = clients.submit(
            httpx.post, f"{url}/v1/score", content=body, headers=JSON, timeout=PATIENCE_S
        )
        serving.wait_until(log.exists)
        child.terminate()
        serving.wait_until(lambda: httpx.get(f"{url}/healthz").status_code == 503)
        refused = httpx.post(f"{url}/v1/score", content=body, headers=JSON)
        is_problem(refused, 503, "shutting down")
        assert refused.headers["retry-after"] == "1"
        answer = accepted.result()
        assert answer.status_code == 200 and len(answer.json()["scores"]) == 2
        assert child.wait(timeout=PATIENCE_S) == 0
        assert child.stderr is not None and "Traceback" not in child.stderr.read()
    assert log.read_text().split() == ["2"]


def test_a_second_signal_ends_the_service_at_once(tmp_path: Path) -> None:
    recipe, log = recipe_in(tmp_path, 600.0)
    with serving.process(recipe) as (child, url):
        served = httpx.get(f"{url}/v1/info").json()["rewards"][0]
        body = encode(plain(tiny.make_batch(2)), served["name"], served["digest"]).body
        address = (url.removeprefix("http://").partition(":")[0], int(url.rpartition(":")[2]))
        with socket.create_connection(address) as client:
            client.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
            serving.wait_until(log.exists)
            child.terminate()
            serving.wait_until(lambda: httpx.get(f"{url}/healthz").status_code == 503)
            child.terminate()
            assert child.wait(timeout=PATIENCE_S) == 143
