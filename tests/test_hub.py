"""What goes wrong with the hub is one sentence with the fix, whichever library the hub's client uses."""

from __future__ import annotations

import pytest

from customized_grpo.errors import UserError
from customized_grpo.hub import download

HUB_ID = "owner/name-that-is-not-cached"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session, constants

    for name in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()  # it reads the proxies when it is opened


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "pip install socksio"),
        ("ALL_PROXY", "socks://127.0.0.1:9", "http://host:port or socks5://host:port"),
        ("HTTPS_PROXY", "ftp://127.0.0.1", "http://host:port or socks5://host:port"),
        ("HTTPS_PROXY", "127.0.0.1:9999x", "no valid port"),
        ("HF_ENDPOINT", "hf-mirror.com", "https://hf-mirror.com"),
        ("HF_ENDPOINT", "http://[", "is no address"),
        ("HF_TOKEN", "hf_\u00e4", "HF_TOKEN"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        download(HUB_ID, "config.json", what="reward model 'x'")
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/cache"), FileExistsError(17, "x", "/c")]
)
def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(UserError, match=f"config.json could not be fetched: .*{error.filename}") as refused:
        download(HUB_ID, "config.json")
    assert "HF_HOME" in str(refused.value)


def test_offline_mode_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: the hub cannot be reached"):
        download(HUB_ID, "config.json")


def test_an_error_of_an_unknown_library_is_still_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strange(Exception):
        pass

    def refuse(*_: object) -> None:
        raise Strange("of a\nlibrary to come")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(UserError, match="could not be fetched: of a library to come"):
        download(HUB_ID, "config.json")
