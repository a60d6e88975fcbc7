"""The studio in a real browser: live while a run trains, on a phone, in the dark, and by keyboard.

It takes Debian's chromium (`apt-get install chromium`), or what CGRPO_CHROMIUM names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import run_here
from customized_grpo.reporting.metrics import MetricsWriter
from customized_grpo.studio.booth import Booth
from processes import CGRPO, child_environment
from studio_serving import Running, running

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = os.environ.get("CGRPO_CHROMIUM") or shutil.which("chromium")
PATIENCE_MS = 120_000
TOKEN = "0123456789abcdef"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
]


class Tab:
    """A page, what its console said, and whom it asked."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.asked: set[str] = set()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.add(request.url))

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def check(self, studio: Running) -> None:
        """Nothing was wrong, and nobody but the studio was asked."""
        assert self.complaints == []
        foreign = [url for url in self.asked if not url.startswith((studio.url + "/", "data:"))]
        assert foreign == [] and self.asked


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Any]:
    contexts = []

    def open_tab(address: str, **options: Any) -> Tab:
        contexts.append(browser.new_context(**options))
        tab = Tab(contexts[-1].new_page())
        tab.page.goto(address)
        return tab

    yield open_tab
    for context in contexts:
        context.close()


def ids(studio: Running) -> str:
    return ",".join(run["id"] for run in studio.json("/api/list")["runs"])


def test_a_run_that_trains_is_followed_without_a_reload(tmp_path: Path, open_tab: Any) -> None:
    settings = ["evaluation.samples_per_prompt=1", "train.iterations=4000", "evaluation.every=1000"]
    command = [*CGRPO, "train", "two-scale", f"run.dir={tmp_path / 'live'}", *settings]
    with running(tmp_path) as studio:
        tab = open_tab(studio.url)
        tab.page.get_by_text("No runs in").wait_for()
        trainer = subprocess.Popen([sys.executable, *command], env=child_environment())
        try:
            tab.page.get_by_text("running", exact=True).wait_for()
            tab.page.get_by_role("link", name="live").click()
            read = tab.page.locator("figure", has_text="reward/prompt").first.locator(".read b").first
            read.wait_for()
            first = read.inner_text()
            done = tab.page.locator(".chip .progress").inner_text()
            tab.page.wait_for_function(
                "([text, done]) => document.querySelector('.read b').textContent !== text"
                " && document.querySelector('.chip .progress').textContent !== done",
                arg=[first, done],
            )
        finally:
            trainer.terminate()
            trainer.wait()
        tab.page.get_by_text("stopped", exact=True).wait_for()
        assert tab.page.evaluate("performance.getEntriesByType('navigation').length") == 1
        tab.check(studio)


@pytest.mark.parametrize("width", [420, 1360])
def test_no_view_scrolls_sideways_and_the_console_is_clean(runs: Path, open_tab: Any, width: int) -> None:
    with running(runs) as studio:
        tab = open_tab(studio.url, viewport={"width": width, "height": 860})
        tab.page.locator("table.runs tbody tr").nth(1).wait_for()
        assert sideways(tab) <= 0
        both = ids(studio)
        for runs_of in (both, both.split(",")[0]):
            for view, part in (
                ("charts", "svg.chart .line"),
                ("images", ".drawn img"),
                ("report", ".report figure svg"),
                ("recipe", "pre:not(:empty)"),
            ):
                tab.page.goto(f"{studio.url}/#/runs/{runs_of}/{view}")
                tab.page.locator(part).first.wait_for()
                assert sideways(tab) <= 0, view
        tab.check(studio)


def sideways(tab: Tab) -> int:
    """Return by how many pixels a page is wider than its window."""
    return int(tab.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def test_the_page_is_dark_where_the_reader_wants_it(runs: Path, open_tab: Any) -> None:
    colours = {}
    with running(runs) as studio:
        for scheme in ("light", "dark"):
            tab = open_tab(studio.url, color_scheme=scheme)
            tab.page.locator("table.runs tbody tr").first.wait_for()
            colours[scheme] = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colours == {"light": "rgb(253, 253, 251)", "dark": "rgb(20, 24, 28)"}


def test_two_runs_are_compared_by_keyboard_alone(runs: Path, open_tab: Any) -> None:
    with running(runs) as studio:
        tab = open_tab(studio.url)
        page = tab.page
        page.locator("table.runs tbody tr").nth(1).wait_for()
        for key in ("j", "x", "j", "x", "c"):
            page.keyboard.press(key)
        page.wait_for_url(f"**/#/runs/{ids(studio)}")
        page.locator(".chip").nth(1).wait_for()
        page.keyboard.press("2")
        page.locator(".drawn img").first.wait_for()
        newest = page.locator(".stages output").inner_text()
        page.keyboard.press(",")
        assert newest == "iteration 6" and page.locator(".stages output").inner_text() == "iteration 3"
        page.keyboard.press("4")
        page.get_by_role("cell", name="run.seed").wait_for()
        page.keyboard.press("?")
        page.get_by_role("dialog").get_by_text("all runs").wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("g")
        page.locator("table.runs tbody tr").nth(1).wait_for()
        page.keyboard.press("/")
        page.keyboard.type("half")
        page.wait_for_function("() => document.querySelectorAll('table.runs tbody tr').length === 1")
        tab.check(studio)


def test_pointing_at_a_chart_reads_all_charts_at_that_place(runs: Path, open_tab: Any) -> None:
    with running(runs) as studio:
        tab = open_tab(f"{studio.url}/#/runs/{studio.run('done')['id']}")
        chart = tab.page.locator("svg.chart").first
        chart.locator(".line").first.wait_for()
        chart.focus()
        tab.page.keyboard.press("Home")
        tab.page.keyboard.press("ArrowRight")
        places = tab.page.locator(".read .where").all_inner_texts()
        assert len(places) > 2 and len(set(places)) == 1 and places[0].startswith("iteration ")
        with MetricsWriter(runs / "done" / "metrics.jsonl") as metrics:
            metrics.write({"kind": "train", "iteration": 90, "rollouts": 8640, "reward/prompt": 0.5})
        tab.page.get_by_text("90 / 6").wait_for()
        tab.page.wait_for_timeout(1000)
        assert chart.locator("xpath=..").locator(".where").inner_text() == places[0]
        tab.check(studio)


def test_a_name_of_markup_is_text(runs: Path, open_tab: Any) -> None:
    (runs / "half").rename(runs / "<img src=x onerror=alert(1)>")
    with running(runs) as studio:
        tab = open_tab(studio.url)
        tab.page.get_by_role("link", name="<img src=x onerror=alert(1)>").click()
        tab.page.locator("svg.chart .line").first.wait_for()
        tab.check(studio)


def test_the_token_is_asked_for_and_the_printed_link_has_it(runs: Path, open_tab: Any) -> None:
    with running(runs, token=TOKEN) as studio:
        tab = open_tab(studio.url)
        tab.page.get_by_label("Token").fill("0123456789abcdeF")
        tab.page.keyboard.press("Enter")
        tab.page.get_by_text("That is not the token.").wait_for()
        tab.page.get_by_label("Token").fill(TOKEN)
        tab.page.keyboard.press("Enter")
        tab.page.locator("table.runs tbody tr").first.wait_for()
        link = open_tab(f"{studio.url}/#token={TOKEN}")
        link.page.locator("table.runs tbody tr").first.wait_for()
        assert TOKEN not in link.page.url and not any(TOKEN in url for url in link.asked)


def test_a_run_is_started_from_the_page_and_a_refusal_is_shown(tmp_path: Path, open_tab: Any) -> None:
    with running(tmp_path, control=True) as studio:
        tab = open_tab(studio.url)
        page = tab.page
        for name, settings in (("bad", "trian.x=1"), ("good", "train.iterations=1\nevaluation.every=0")):
            page.get_by_role("button", name="New run").click()
            page.get_by_label("Recipe", exact=True).fill("two-scale")
            page.get_by_label("Name of the folder").fill(name)
            page.get_by_label("Settings").fill(settings)
            page.get_by_role("button", name="Start").click()
        page.get_by_text("train bad: failed with status 2").wait_for()
        page.locator("tr", has_text="good").get_by_text("ended").wait_for()
        tab.check(studio)


def test_a_comparison_is_shown_in_its_frame(tmp_path: Path, open_tab: Any) -> None:
    done = run_here(
        *("compare", "two-scale", "--only", "naive-0.5", "--seeds", "1", "--no-doctor"),
        *("--out", str(tmp_path / "compared"), "train.iterations=2", "evaluation.samples_per_prompt=1"),
    )
    assert done.returncode == 0, done.stderr
    with running(tmp_path) as studio:
        tab = open_tab(studio.url)
        tab.page.get_by_role("link", name="compared comparison, 1 of 1 runs ended").click()
        tab.page.frame_locator("iframe").get_by_role("heading", level=1).wait_for()
        tab.page.get_by_text("Its runs").click()
        tab.page.get_by_role("link", name="compared/runs/naive-0.5/seed_0").wait_for()
        tab.check(studio)


@pytest.mark.parametrize("width", [420, 1360])
def test_a_vote_is_given_by_keyboard_and_counted(
    runs: Path, tmp_path: Path, open_tab: Any, width: int
) -> None:
    booth = Booth(runs / "done", runs / "half", None, tmp_path / "votes.jsonl")
    with running(booth=booth) as studio:
        tab = open_tab(studio.url, viewport={"width": width, "height": 860})
        page = tab.page
        page.get_by_label("Your name").fill("Ann")
        page.keyboard.press("Enter")
        for pair in range(8):
            for question, key in (("subject of the reference", "ArrowLeft"), ("prompt says", "ArrowDown")):
                page.get_by_role("heading", name=question).wait_for()
                assert sideways(tab) <= 0
                page.keyboard.press(key)
            if pair == 0:
                page.get_by_text("1 of 8 done").wait_for()
                page.keyboard.press("Backspace")
                page.get_by_role("heading", name="prompt says").wait_for()
                page.keyboard.press("0")
        page.get_by_role("link", name="Results").click()
        page.get_by_text("8 of 1 voter").first.wait_for()
        assert sideways(tab) <= 0
        tab.check(studio)
    identity, prompt = booth.results().results
    assert (identity["left"], identity["wins"], identity["losses"]) == (1.0, 4, 4)
    assert prompt["ties"] == 8
