"""A real studio on loopback: what it answers, to whom, and how soon it tells what a run has written."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

from commands import run_here
from comparison_results import comparison
from customized_grpo.reporting.metrics import MetricsWriter
from customized_grpo.studio.app import STATIC
from studio_serving import Events, Running, process, running, stream

pytestmark = pytest.mark.slow

TOKEN = "0123456789abcdef"


def append(run: Path, iteration: int) -> None:
    with MetricsWriter(run / "metrics.jsonl") as metrics:
        metrics.write({"kind": "train", "iteration": iteration, "rollouts": iteration * 96})


def records_until(events: Events, count: int) -> list[dict[str, object]]:
    """Return the records of a run since the stream last began anew, when there are as many."""
    records: list[dict[str, object]] = []
    while len(records) < count:
        part = events.next("records")
        records = [*([] if part["restarted"] else records), *part["records"]]
    return records


def test_a_new_line_of_metrics_is_in_the_browser_within_a_second(runs: Path) -> None:
    written = len((runs / "half" / "metrics.jsonl").read_text().splitlines())
    with running(runs) as studio:
        run = studio.run("half")["id"]
        with stream(f"{studio.url}/api/stream?runs={run}") as events:
            assert len(records_until(events, written)) == written
            seconds = []
            for iteration in (90, 91, 92):
                begun = time.monotonic()
                append(runs / "half", iteration)
                news = events.next("records")
                seconds.append(time.monotonic() - begun)
                assert news["run"] == run and not news["restarted"]
                assert [record["iteration"] for record in news["records"]] == [iteration]
    assert min(seconds) < 1  # one of three: the machine may be busy with something else


def test_a_resumed_run_that_drops_records_is_sent_anew(runs: Path) -> None:
    with running(runs) as studio:
        run = studio.run("done")["id"]
        with stream(f"{studio.url}/api/stream?runs={run}") as events:
            assert events.next("records")["restarted"]
            with MetricsWriter.open(runs / "done" / "metrics.jsonl", upto_iteration=2):
                pass
            news = events.next("records")
    assert news["restarted"] and {record["iteration"] for record in news["records"]} == {0, 1, 2}


def test_two_runs_come_in_one_stream_and_a_new_run_comes_into_the_list(runs: Path, trained: Path) -> None:
    with running(runs) as studio:
        first, second = studio.run("done")["id"], studio.run("half")["id"]
        with stream(f"{studio.url}/api/stream?runs={first}&runs={second}") as events:
            assert {events.next("records")["run"] for _ in range(2)} == {first, second}
        with stream(f"{studio.url}/api/stream") as events:
            assert len(events.next("list")["runs"]) == 2
            shutil.copytree(trained, runs / "new")
            while len(found := events.next("list")["runs"]) < 3:
                pass
    assert [run["name"] for run in found] == ["done", "half", "new"]


def test_a_run_that_does_not_exist_is_not_followed(runs: Path) -> None:
    with running(runs) as studio:
        assert studio.get("/api/stream?runs=../done").status_code == 404
        too_many = "&".join(["runs=a"] * 13)
        assert studio.get(f"/api/stream?{too_many}").status_code == 422


def test_without_the_token_nothing_is_shown_but_the_page_that_asks_for_it(runs: Path) -> None:
    with running(runs, token=TOKEN) as studio:
        for path in ("/api/list", "/api/stream", "/api/runs/x/report", "/api/runs/x/samples/0/reference"):
            assert studio.get(path).status_code == 401
        wrong = {"Authorization": "Bearer 0123456789abcdeF"}
        assert studio.get("/api/list", headers=wrong).status_code == 401
        name = studio.studio.rules.cookie_name
        assert studio.get("/api/list", cookies={name: TOKEN}).status_code == 401
        page = studio.get("/")
        assert page.status_code == 401 and 'type="password"' in page.text
        assert studio.get("/static/login.js").status_code == 200


def test_the_token_opens_as_a_bearer_and_as_a_cookie_after_the_login(runs: Path) -> None:
    with running(runs, token=TOKEN) as studio:
        bearer = studio.get("/api/list", headers={"Authorization": f"Bearer {TOKEN}"})
        assert len(bearer.json()["runs"]) == 2
        with httpx.Client(base_url=studio.url) as browser:
            assert browser.post("/login", json={"token": "0123456789abcdeF"}).status_code == 401
            answer = browser.post("/login", json={"token": TOKEN})
            cookie = answer.headers["set-cookie"]
            assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
            assert browser.get("/api/list").status_code == 200
            with running(runs, token=TOKEN) as other:  # cookies of a host go to all its ports
                second = httpx.post(f"{other.url}/login", json={"token": TOKEN})
                browser.cookies.update(second.cookies)
                assert browser.get("/api/list").status_code == 200
            assert "<nav" in browser.get("/").text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "", "["])
def test_a_foreign_host_is_refused(runs: Path, host: str) -> None:
    with running(runs) as studio:
        name = host.format(port=studio.url.rpartition(":")[2])
        for path in ("/", "/api/list", "/static/app.js"):
            assert studio.get(path, headers={"Host": name}).status_code in (400, 403)


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "[::1]:80"])
def test_the_names_of_this_machine_are_answered_through_any_tunnel(runs: Path, host: str) -> None:
    with running(runs) as studio:
        assert studio.get("/api/list", headers={"Host": host}).status_code == 200


def test_a_change_from_another_page_is_refused(runs: Path) -> None:
    with running(runs, token=TOKEN) as studio:
        foreign = {"Origin": "http://evil.example"}
        answer = httpx.post(f"{studio.url}/login", json={"token": TOKEN}, headers=foreign)
        assert answer.status_code == 403
        form = httpx.post(f"{studio.url}/login", data={"token": TOKEN})
        assert form.status_code == 415
        own = httpx.post(f"{studio.url}/login", json={"token": TOKEN}, headers={"Origin": studio.url})
        assert own.status_code == 200


def test_every_answer_forbids_foreign_scripts_and_connections(runs: Path) -> None:
    with running(runs) as studio:
        for path in ("/", "/api/list", "/static/app.js", "/no/such/page", "/api/runs/x/head"):
            headers = studio.get(path).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy and "script-src 'self';" in policy
            assert "connect-src 'self'" in policy and headers["x-content-type-options"] == "nosniff"


def test_the_pages_of_the_package_have_no_inline_script_and_no_foreign_address() -> None:
    for page in STATIC.glob("*.html"):
        text = page.read_text()
        assert re.findall(r"<script(?![^>]* src=)", text) == [] and " on" not in re.sub(">[^<]*<", "><", text)
        assert re.findall(r"""(?:src|href)=["'](?!/static/|#)""", text) == []
    for script in STATIC.glob("*.js"):
        addresses = re.findall(r"https?://[^\s\"'`]+", script.read_text())
        assert [address for address in addresses if address != "http://www.w3.org/2000/svg"] == []


def test_head_report_and_recipe_are_the_runs_own(runs: Path) -> None:
    with running(runs) as studio:
        run = studio.run("done")["id"]
        assert "Held-out identity" in studio.get(f"/api/runs/{run}/head").text
        report = studio.get(f"/api/runs/{run}/report").text
        assert "Do the two rewards agree?" in report and "Prompt and identity weight by step" in report
        assert "<script" not in report
        recipe = studio.get(f"/api/runs/{run}/recipe").text
        assert recipe == (runs / "done" / "config.yaml").read_text()
        other = studio.run("half")["id"]
        difference = studio.json(f"/api/runs/{run}/difference/{other}")
        assert difference == [{"key": "run.seed", "first": 0, "second": 7}]


def test_what_a_run_is_named_and_says_is_escaped(runs: Path) -> None:
    with MetricsWriter(runs / "half" / "metrics.jsonl") as metrics:
        metrics.write(
            {"kind": "event", "iteration": 3, "event": "alarm", "message": "<script>alert(1)</script>"}
        )
    with running(runs) as studio:
        head = studio.get(f"/api/runs/{studio.run('half')['id']}/head").text
    assert "&lt;script&gt;" in head and "<script" not in head


def test_sample_images_are_served_and_scaled(runs: Path) -> None:
    with running(runs) as studio:
        run = studio.run("done")["id"]
        samples = studio.json(f"/api/runs/{run}/samples")
        assert samples["iterations"] == [0, 3, 6] and samples["rows"][0]["prompt"]
        for which in ("reference", "target", "0", "6"):
            answer = studio.get(f"/api/runs/{run}/samples/0/{which}")
            assert answer.headers["content-type"] == "image/png"
        assert width(studio, f"/api/runs/{run}/samples/0/6?side=16") <= 16


def width(studio: Running, path: str) -> int:
    with Image.open(io.BytesIO(studio.get(path).content)) as image:
        return image.width


def test_an_image_outside_the_run_is_refused(runs: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    samples = runs / "half" / "samples"
    index = json.loads((samples / "index.json").read_text())
    index["rows"][0]["reference"] = "../../../private.png"
    index["rows"][1]["reference"] = str(tmp_path / "private.png")
    (samples / "index.json").write_text(json.dumps(index))
    (samples / "iteration_000000" / "00.png").unlink()
    os.symlink(tmp_path / "private.png", samples / "iteration_000000" / "00.png")
    with running(runs) as studio:
        run = studio.run("half")["id"]
        for place in ("0/reference", "1/reference", "0/0"):
            answer = studio.get(f"/api/runs/{run}/samples/{place}")
            assert answer.status_code == 422 and answer.headers["content-type"] != "image/png"
        for place in ("0/..%2F..%2Fconfig.yaml", "0/nothing", "-1/0", "99/0", "0/4", "0/" + "9" * 5000):
            assert studio.get(f"/api/runs/{run}/samples/{place}").status_code in (404, 422)


def test_a_run_folder_is_reached_by_its_id_alone(runs: Path) -> None:
    with running(runs / "done") as studio:
        for path in (
            "/api/runs/..%2Fhalf/recipe",
            "/api/runs/half/recipe",
            "/static/..%2Fapp.py",
            "/static/%2e%2e/app.py",
        ):
            assert studio.get(path).status_code == 404


def test_the_page_of_a_comparison_is_drawn_from_its_results(tmp_path: Path) -> None:
    folder = tmp_path / "compared"
    folder.mkdir()
    (folder / "plan.json").write_text("{}")
    with running(tmp_path) as studio:
        (entry,) = studio.json("/api/list")["comparisons"]
        assert entry["written_s"] is None
        early = studio.get(f"/api/comparisons/{entry['id']}/page")
        assert early.status_code == 422 and "first run" in early.text
        (folder / "results.json").write_text(json.dumps(comparison()))
        page = studio.get(f"/api/comparisons/{entry['id']}/page")
    assert page.status_code == 200 and "<script" not in page.text and "<h1" in page.text
    assert "script-src" not in page.headers["content-security-policy"]


def test_a_comparison_counts_runs_that_are_planned_or_joined(tmp_path: Path) -> None:
    folder = tmp_path / "compared"
    folder.mkdir()
    plan = {"arms": [{"name": "a"}, {"name": "b"}], "seeds": [0, 1]}
    (folder / "plan.json").write_text(json.dumps(plan))
    with running(tmp_path) as studio:

        def counts() -> tuple[int, int]:
            (entry,) = studio.json("/api/list")["comparisons"]
            return entry["runs"], entry["elsewhere"]

        assert counts() == (4, 0)
        runs = [{"arm": "a", "seed": seed, "state": "finished"} for seed in (0, 7)]
        runs += [{"arm": "b", "seed": 1, "state": "missing"}, {"arm": ["b"], "seed": "x"}, "no run"]
        (folder / "results.json").write_text(json.dumps({"runs": runs}))
        assert counts() == (5, 2)  # seed 7 is not of the plan
        (folder / "runs" / "a" / "seed_0").mkdir(parents=True)
        assert counts() == (5, 1)
        for damaged in ("[", "[]", json.dumps({"runs": 3})):
            (folder / "results.json").write_text(damaged)
            assert counts() == (4, 0)


def test_it_writes_nothing_into_the_folders(runs: Path) -> None:
    def content() -> dict[str, tuple[int, int]]:
        files = [file for file in runs.rglob("*") if file.is_file()]
        return {str(file): (file.stat().st_mtime_ns, file.stat().st_size) for file in files}

    before = content()
    with running(runs) as studio:
        run = studio.run("done")["id"]
        for path in ("head", "report", "recipe", "samples", "samples/0/6"):
            assert studio.get(f"/api/runs/{run}/{path}").status_code == 200
    assert content() == before


def test_the_command_ends_at_once_although_a_browser_listens(runs: Path) -> None:
    with process(str(runs)) as (child, url), stream(f"{url}/api/stream") as events:
        assert len(events.next("list")["runs"]) == 2
        begun = time.monotonic()
        child.send_signal(signal.SIGTERM)
        child.wait(30)
        assert time.monotonic() - begun < 10 and child.returncode in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("arguments", "token", "message"),
    [
        (["no/such/folder"], None, "no such folder: no/such/folder"),
        ([".", "--host", "0.0.0.0"], None, "can be reached from other machines, and there is no token"),
        (["."], "short", "is not 16 or more"),
    ],
)
def test_what_cannot_be_served_is_refused(
    arguments: list[str], token: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CGRPO_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("CGRPO_TOKEN", token)
    done = run_here("studio", *arguments, "--port", "0")
    assert done.returncode == 2 and message in done.stderr
