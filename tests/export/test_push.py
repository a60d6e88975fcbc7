"""`cgrpo export --push`, against a hub of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.cli.main import main
from fake_hub import TOKEN, FakeHub, fake_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import close_session, constants

    for name in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with fake_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        close_session()  # it reads the proxies when it is opened
        yield server
    close_session()


@pytest.fixture(scope="module")
def trained(make_trained: Any) -> Any:
    return make_trained("flux1")


def export(*arguments: object) -> int:
    try:
        return main(["export", *map(str, arguments)])
    except SystemExit as left:
        assert isinstance(left.code, int)
        return left.code


def test_the_folder_is_uploaded_as_it_is(
    trained: Any, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(trained.path, "--out", tmp_path / "out", "--push", "owner/mine") == 0
    written = {f"owner/mine/{file.name}": file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert {name: content for name, content in hub.files.items() if ".git" not in name} == written
    assert len(written) == 2
    assert hub.created[0]["visibility"] == "private"
    assert hub.messages == [f"{trained.path.name}, by cgrpo export"]
    assert f"{hub.url}/owner/mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "token", "message"),
    [
        (["--push", "mine"], TOKEN, "no name of a repository"),
        (["--push", "owner/mine"], "", "nobody is logged in here"),
        (["--push", "owner/mine"], "hf_of_somebody", "hf auth login"),
        (["--public"], TOKEN, "nothing is uploaded"),
    ],
)
def test_what_cannot_be_uploaded_is_refused_before_anything_is_written(
    trained: Any,
    hub: FakeHub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    token: str,
    message: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    assert export(trained.path, "--out", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not hub.created


def test_an_upload_that_the_hub_refuses_leaves_the_export(
    trained: Any, hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuses = 403
    assert export(trained.path, "--out", tmp_path / "out", "--push", "owner/mine") == 2
    error = capsys.readouterr().err
    assert "a token that may write to owner/mine" in error and f"hf upload owner/mine {tmp_path}" in error
    assert (tmp_path / "out" / "README.md").is_file()
