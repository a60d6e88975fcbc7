"""Which rewards `cgrpo serve-rewards` serves, and what it refuses before it loads any."""

from __future__ import annotations

import socket
import sys

import pytest

from customized_grpo.cli.main import main
from customized_grpo.cli.serve_rewards import served_rewards
from customized_grpo.config import load_config
from customized_grpo.errors import UserError

HTTP = "rewards.dino.executor={kind: http, url: 'http://127.0.0.1:8000'}"


def test_it_serves_what_the_trainer_asks_for_over_http_or_else_everything() -> None:
    assert [reward.name for reward in served_rewards(load_config("toybox"))] == [
        "dino",
        "clip_i",
        "pickscore",
    ]
    assert [reward.name for reward in served_rewards(load_config("toybox", [HTTP]))] == ["dino"]


def test_two_rewards_of_one_name_cannot_be_told_apart_by_clients() -> None:
    config = load_config("toybox", ["rewards.clip_i.name=dino"])
    with pytest.raises(UserError, match="the recipe has several rewards dino"):
        served_rewards(config)


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        (["--host", "0.0.0.0"], None, "can be reached from other machines, and there is no token"),
        ([], "short", "is not 16 or more"),
        (["--host", "no.such.host.invalid"], "0123456789abcdef", "cannot listen on no.such.host.invalid"),
    ],
)
def test_it_refuses_to_be_open_to_others(
    options: list[str],
    token: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("CGRPO_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("CGRPO_TOKEN", token)
    assert main(["serve-rewards", "toybox", "--port", "0", *options]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_a_taken_port_is_a_clear_message(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve-rewards", "toybox", "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve-rewards", "toybox"]) == 2
    assert "pip install 'customized-grpo[serve]'" in capsys.readouterr().err
