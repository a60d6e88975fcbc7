"""The client of a reward service against real servers, well-behaved and not."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import serving
import tiny_rewards as tiny
from customized_grpo.config.executors import HttpExecution
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards import RewardError
from customized_grpo.rewards.executors import build_executor, build_scorer
from customized_grpo.rewards.executors.http import HttpExecutor
from customized_grpo.rewards.registry import scoring_settings
from customized_grpo.rewards.service.protocol import PROTOCOL, digest_of

pytestmark = pytest.mark.slow

TOKEN = "correct-horse-battery-staple"
OWN = RewardConfig(name="own_rewards:Own")


def at(url: str, config: RewardConfig = OWN, **place: Any) -> RewardConfig:
    return config.model_copy(
        update={"executor": HttpExecution(kind="http", url=url, **{"retries": 2, **place})}
    )


class Script:
    """A server of one's own that answers POST /v1/score as told, one answer a request."""

    def __init__(self, answers: list[Callable[[BaseHTTPRequestHandler], None]]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str]] = []
        self.url = ""

    def info(self) -> dict[str, Any]:
        fingerprint = {"name": "own", "kind": "quality"}
        reward = {"name": OWN.name, "label": "own", "kind": "quality", "fingerprint": fingerprint}
        facts = {"digest": digest_of(fingerprint), "settings": scoring_settings(OWN)}
        return {"protocol": PROTOCOL, "rewards": [{**reward, **facts}], "merge": 0}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append((handler.command, handler.path))
        handler.rfile.read(int(handler.headers.get("content-length", 0)))
        if handler.path == "/v1/info":
            say(200, self.info())(handler)
        elif handler.path == "/v1/references/missing":
            say(200, {"sha256": []})(handler)
        elif handler.path == "/v1/score":
            self.answers.pop(0)(handler)
        else:
            say(404, {})(handler)


def say(status: int, body: Any, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"content-length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def problem(status: int, detail: str) -> dict[str, Any]:
    return {"title": "x", "status": status, "detail": detail}


@contextlib.contextmanager
def scripted(*answers: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[Script]:
    script = Script(list(answers))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            script.answer(self)

        do_POST = do_PUT = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


SCORES = say(200, {"scores": [0.5, None]})


@pytest.mark.parametrize(
    "failure",
    [
        hang_up,
        say(408, {}),
        say(429, {}, retry_after="0"),
        say(500, b"<html>"),
        say(503, {}, retry_after="0"),
    ],
    ids=["connection lost", "408", "429", "500", "503"],
)
def test_what_may_pass_is_tried_again(failure: Any) -> None:
    with scripted(failure, failure, SCORES) as service, build_scorer([at(service.url)]) as scorer:
        scores = scorer.score(tiny.make_batch(2))[:, 0]
        assert scores[0] == 0.5 and scores[1].isnan()
        assert service.asked.count(("POST", "/v1/score")) == 3


def test_tries_are_bounded_and_the_failure_names_reward_and_samples() -> None:
    busy = say(503, problem(503, "9 requests wait already"), retry_after="0")
    with scripted(*[busy] * 9) as service, build_scorer([at(service.url)]) as scorer:
        with pytest.raises(RewardError) as caught:
            scorer.score(tiny.make_batch(2))
        assert service.asked.count(("POST", "/v1/score")) == 3
    message = str(caught.value)
    assert "reward 'own' failed on samples sample 0 (row 'row-0') to sample 1" in message
    assert "503 9 requests wait already (attempts: 3)" in message


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (say(400, problem(400, "bad luck")), "bad luck"),
        (say(401, problem(401, "the token is wrong")), "the token is wrong"),
        (say(404, b"<html>not here</html>"), "404"),
        (say(302, b"", location="http://169.254.169.254/latest/meta-data"), "redirect"),
    ],
    ids=["400", "401", "404", "redirect to link-local"],
)
def test_what_cannot_pass_is_told_at_once(answer: Any, message: str) -> None:
    with scripted(answer) as service, build_scorer([at(service.url)]) as scorer:
        with pytest.raises(UserError, match=message):
            scorer.score(tiny.make_batch(2))
        assert service.asked.count(("POST", "/v1/score")) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (say(200, b"<html>"), "the answer is no ScoreAnswer"),
        (say(200, {"scores": ["0.5", 1]}), "the answer is no ScoreAnswer"),
        (say(200, {"scores": [0.5]}), "1 scores for 2 samples"),
        (say(200, b" " * (16 * 2**20 + 1)), "answer over 16,777,216 bytes"),
        (say(409, {**problem(409, "x"), "missing": ["0" * 63]}), "the answer is no Problem"),
    ],
    ids=["HTML", "text", "too few", "huge", "no references"],
)
def test_an_answer_of_another_form_is_a_failure_not_a_score(answer: Any, message: str) -> None:
    with (
        scripted(answer) as service,
        build_scorer([at(service.url, retries=0)]) as scorer,
        pytest.raises(RewardError, match=message),
    ):
        scorer.score(tiny.make_batch(2))


def test_a_slow_service_is_a_timeout_and_not_asked_again() -> None:
    slow = RewardConfig(name="own_rewards:Slow", options={"seconds": 3.0})
    with (
        serving.running([slow]) as service,
        build_scorer([at(service.url, slow, timeout_s=1.0)]) as scorer,
        pytest.raises(RewardError, match=r"no answer within 1 s \(timeout_s\)"),
    ):
        scorer.score(tiny.make_batch(2))


def test_closing_gives_up_what_is_under_way_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    slow = RewardConfig(name="own_rewards:Slow", options={"seconds": 5.0, "log": str(log)})
    with serving.running([slow]) as service:
        scorer = build_scorer([at(service.url, slow)])
        scorer.submit(tiny.make_batch(2))
        serving.wait_until(log.exists)
        begun = time.monotonic()
        scorer.close()
        assert time.monotonic() - begun < 4
        assert not [thread for thread in threading.enumerate() if thread.name == "reward own_rewards:Slow"]


def test_a_token_is_needed_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving.running([OWN], token=TOKEN) as service:
        for given in (None, "wrong-horse-battery-staple"):
            monkeypatch.setenv("CGRPO_SERVICE_TOKEN", given or "")
            with pytest.raises(UserError, match="the token is missing or wrong") as caught:
                build_executor(at(service.url, token_env=given and "CGRPO_SERVICE_TOKEN"))
            assert not given or given not in str(caught.value)
        monkeypatch.setenv("CGRPO_SERVICE_TOKEN", TOKEN)
        with build_scorer([at(service.url, token_env="CGRPO_SERVICE_TOKEN")]) as scorer:
            assert scorer.score(tiny.make_batch(2)).isfinite().all()


def test_the_service_is_not_asked_through_a_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CGRPO_SERVICE_TOKEN", TOKEN)
    with serving.running([OWN], token=TOKEN) as service, scripted() as proxy:
        for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(variable, proxy.url)
        with build_scorer([at(service.url, token_env="CGRPO_SERVICE_TOKEN")]) as scorer:
            assert scorer.score(tiny.make_batch(2)).isfinite().all()


def test_a_token_that_a_server_sends_back_is_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CGRPO_SERVICE_TOKEN", TOKEN)
    echo = say(400, problem(400, f"you sent {TOKEN}"))
    with (
        scripted(echo) as service,
        build_scorer([at(service.url, token_env="CGRPO_SERVICE_TOKEN")]) as scorer,
        pytest.raises(UserError, match=r"you sent \[redacted\]"),
    ):
        scorer.score(tiny.make_batch(2))


def test_nobody_there_and_something_else_there_are_told_before_the_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UserError, match=r"ConnectError.*\(attempts: 1\)") as caught:
        build_executor(at(f"http://127.0.0.1:{port}", retries=0))
    assert "cgrpo serve-rewards" in str(caught.value)
    with scripted() as service, pytest.raises(UserError, match="404"):
        build_executor(at(f"{service.url}/other"))


@pytest.mark.parametrize(
    ("served", "wanted", "message"),
    [
        (
            OWN,
            RewardConfig(name="dino"),
            "has no reward 'dino', only own_rewards:Own\nStart the service with a recipe",
        ),
        (
            RewardConfig(name="dino", path="toybox", segment="none"),
            RewardConfig(name="dino", path="toybox"),
            "scores with segment: none, the recipe says segment: reference",
        ),
        (
            RewardConfig(name="own_rewards:Own", noise=0.5),
            OWN,
            "scores with noise: 0.5, the recipe says noise: 0",
        ),
        (
            RewardConfig(name="own_rewards:Own", path="owner/large"),
            OWN,
            "scores with path: owner/large, the recipe says path: its default",
        ),
        (
            RewardConfig(name="own_rewards:Own", options={"revision": 2}),
            RewardConfig(name="own_rewards:Own", options={"revision": 1}),
            "scores with another options.revision than the recipe says",
        ),
        (
            RewardConfig(name="own_rewards:Own", options={"revision": 2}),
            OWN,
            "scores with options.revision, the recipe says no options.revision",
        ),
        (
            RewardConfig(name="two_scale_prompt", options={"leak": 0.5}),
            RewardConfig(name="two_scale_prompt"),
            "scores with another options.leak than",
        ),
    ],
    ids=["missing", "segment", "noise", "path", "option", "no option", "default"],
)
def test_a_service_that_scores_otherwise_than_the_recipe_says_is_refused(
    served: RewardConfig, wanted: RewardConfig, message: str
) -> None:
    with serving.running([served]) as service, pytest.raises(UserError, match=message):
        build_executor(at(service.url, wanted))


def test_another_model_behind_the_same_address_is_noticed_at_once_and_on_resume() -> None:
    old, new = (OWN.model_copy(update={"options": {"revision": number}}) for number in (1, 2))
    with serving.running([old]) as service:
        scorer = build_scorer([at(service.url, old)])
        before = scorer.fingerprints()
        port = int(service.url.rpartition(":")[2])
    with scorer, serving.running([new], port=port):
        with pytest.raises(UserError, match="not the one the client got to know"):
            scorer.score(tiny.make_batch(2))
        with build_scorer([at(service.url, new)]) as resumed:
            assert before[0]["revision"] == 1
            assert resumed.fingerprints() == [{**before[0], "revision": 2}]


def test_a_service_that_dies_in_the_middle_and_comes_back_is_asked_again(tmp_path: Path) -> None:
    log, recipe = tmp_path / "log", tmp_path / "recipe.yaml"
    options = {"seconds": 1.0, "log": str(log)}
    slow = RewardConfig(name="own_rewards:Slow", options=options)
    recipe.write_text(
        "model: {path: toybox, device: cpu}\ndata: {kind: toybox}\n"
        f"rewards: [{{name: 'own_rewards:Slow', options: {json.dumps(options)}}}]\n"
    )
    with serving.process(recipe) as (first, url):
        scorer = build_scorer([at(url, slow, retries=9)])
        scorer.submit(tiny.make_batch(2))
        serving.wait_until(log.exists)
        first.kill()
        first.wait()
    with scorer, serving.process(recipe, "--port", url.rpartition(":")[2]):
        scores = scorer.collect()
    assert torch.allclose(scores[:, 0], tiny.make_batch(2).images.mean(dim=(1, 2, 3)), atol=1e-3)
    assert log.read_text().splitlines() == ["2", "2"]


def test_references_go_over_the_wire_once() -> None:
    dino = RewardConfig(name="dino", path="toybox")
    with serving.running([dino]) as service:
        executor = build_executor(at(service.url, dino))
        assert isinstance(executor, HttpExecutor)
        put: list[str] = []
        ask = executor._connection.ask

        async def noted(method: str, path: str, *rest: Any) -> Any:
            put.extend([path] if method == "PUT" else [])
            return await ask(method, path, *rest)

        executor._connection.ask = noted  # type: ignore[method-assign]
        batch = tiny.make_batch(3)
        for _ in range(2):
            executor.submit(batch).result(60)
        assert len(put) == len(set(put)) == 4  # three references and the one mask they share
        executor.close()


def test_references_pushed_out_of_the_store_come_again_or_are_a_clear_failure() -> None:
    dino, batch = RewardConfig(name="dino", path="toybox"), tiny.make_batch(3)
    for bytes_kept, works in ((40_000, True), (5_000, False)):
        limits = serving.Limits(4 * 2**20, 10**6, 8, bytes_kept)
        with serving.running([dino], limits) as service, build_scorer([at(service.url, dino)]) as scorer:
            if works:
                assert scorer.score(batch).isfinite().all()
            else:
                with pytest.raises(RewardError, match="cannot hold the references of one batch"):
                    scorer.score(batch)
