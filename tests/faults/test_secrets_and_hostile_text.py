"""A whole run with secrets around it and hostile text in it: the first come out nowhere, the second is inert.

The keys of judges are in tests/rewards/test_judge_in_a_run.py, hostile text in every field of a report in
tests/pages/test_run_page.py.
"""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

import forked
from customized_grpo.cli.main import main

SECRET = "hf_MustNotBeSeen0123456789"
HOSTILE = "<script>alert(1)</script>"
TRACKER = """
import os, sys
from pathlib import Path
from customized_grpo.cli.main import main
from customized_grpo.reporting import trackers

class Service:
    '''Writes down all that a service would get, and fails half-way with the key in its message.'''
    def __init__(self, run_dir, config):
        self.sent = Path(sys.argv[1])
        self.sent.write_text(repr((str(run_dir), config)))
    def log(self, metrics, iteration):
        with self.sent.open("a") as file:
            file.write(repr(metrics))
        if iteration == 1:
            raise ConnectionError("401 for https://service/?key=" + os.environ["WANDB_API_KEY"])
    def log_images(self, images, iteration):
        with self.sent.open("a") as file:
            file.write(repr(images))
    def close(self):
        pass

trackers.TRACKERS["wandb"] = Service
sys.exit(main(sys.argv[2:]))
"""


class Tags(HTMLParser):
    """Collects what a page would fetch or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts, self.links = 0, list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]


@pytest.fixture(scope="module")
def hostile_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ToyBox as files, with hostile prompts and subjects."""
    folder = tmp_path_factory.mktemp("rows")
    with pytest.raises(SystemExit) as left:
        main(["toybox", "export", str(folder / "data"), "--subjects", "2"])
    assert left.value.code == 0
    manifest = folder / "data" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row["prompt"], row["subject"] = f"{HOSTILE} {row['prompt']}", f"{HOSTILE} {row['subject']}"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


@pytest.mark.slow
def test_a_run_with_secrets_a_failing_service_and_hostile_text(hostile_rows: Path, tmp_path: Path) -> None:
    run, sent = tmp_path / f"run{HOSTILE.replace('/', '')}", tmp_path / "sent.txt"
    data = f"data={{kind: manifest, train: {hostile_rows}, held_out: {hostile_rows}}}"
    secrets = {name: SECRET for name in ("HF_TOKEN", "WANDB_API_KEY", "HTTPS_PROXY_PASSWORD")}
    arguments = [f"run.dir={json.dumps(str(run))}", "trackers=[wandb]", "train.iterations=2"]
    done = forked.python("-c", TRACKER, sent, "train", "toybox-smoke", data, *arguments, **secrets)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tracker wandb is off for this run (ConnectionError)") == 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if line["kind"] != "event"]) == 4
    written = {path: path.read_bytes() for path in [sent, *run.rglob("*")] if path.is_file()}
    written[Path("printed")] = (done.stdout + done.stderr).encode()
    assert b"policy/loss" in written[sent], "the service was never told anything"
    assert [path for path, content in written.items() if SECRET.encode() in content] == []
    page = written[run / "report.html"].decode()
    assert HOSTILE not in page and "&lt;script&gt;alert(1)" in page
    tags = Tags(page)
    assert tags.scripts == 1, "the page's own"
    assert [link[:40] for link in tags.links if not link.startswith(("data:", "#"))] == []


@pytest.mark.parametrize(
    "override",
    [
        f"model.pasword={SECRET}",
        f"rewards.dino.options.token={SECRET}",
        f"model.path=https://user:{SECRET}@huggingface.co/black-forest-labs/FLUX.1-Kontext-dev",
    ],
)
def test_a_secret_on_the_command_line_is_not_repeated(
    override: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = tmp_path / "run"
    assert main(["train", "toybox-smoke", f"run.dir={run}", override]) == 2
    printed = "".join(capfd.readouterr())
    assert "error: " in printed and SECRET not in printed
    assert not run.exists()
