"""What the studio and the vote look like in a real browser: letters, contrast, and paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import browser as looks
from customized_grpo.studio.booth import Booth
from studio_serving import Running, running

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(looks.CHROMIUM is None, reason=looks.NO_CHROMIUM),
]

PATIENCE_MS = 120_000
SMALLEST_PX = 11
READABLE = 4.5
"""Least contrast of text by WCAG 2, level AA."""

BROKEN = """() => {
  const broken = (node) => {
    const range = document.createRange();
    range.selectNodeContents(node);
    return range.getClientRects().length > 1;
  };
  const parts = [...document.querySelectorAll('.difference code')].flatMap((name) => [...name.childNodes]);
  return parts.filter((node) => node.nodeType === 3 && broken(node)).map((node) => node.textContent);
}"""
"""Parts of names of settings that are on two lines."""

WIDTHS = [looks.PHONE, looks.DESKTOP]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with looks.chromium(sync_api) as browser:
        yield browser


def open_page(chromium: Any, address: str, viewport: dict[str, int]) -> Any:
    page = chromium.new_context(viewport=viewport).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    return page


def check(page: Any, where: str) -> None:
    """No letter is too small, none too pale on a light or a dark page, and nothing scrolls sideways."""
    sizes = page.evaluate(looks.SIZES)
    assert len(sizes) > 5, where
    assert [entry for entry in sizes if entry[0] < SMALLEST_PX - 0.05] == [], where
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        contrasts = page.evaluate(looks.CONTRASTS)
        assert len(contrasts) > 5, where
        assert [entry for entry in contrasts if entry[0] < READABLE] == [], (where, scheme)
    assert page.evaluate(looks.SIDEWAYS) <= 0, where


def views(studio: Running) -> list[tuple[str, str]]:
    """Return (address, what is there once the view is drawn) of every view."""
    one = studio.run("done")["id"]
    both = ",".join(run["id"] for run in studio.json("/api/list")["runs"])
    return [
        ("", "table.runs tbody tr"),
        (f"#/runs/{one}/charts", "svg.chart .line"),
        (f"#/runs/{both}/charts", "svg.chart .line"),
        (f"#/runs/{both}/images", ".drawn img"),
        (f"#/runs/{one}/report", ".report figure svg"),
        (f"#/runs/{both}/recipe", "pre:not(:empty)"),
    ]


@pytest.mark.parametrize("viewport", WIDTHS)
def test_every_view_of_the_studio_can_be_read(runs: Path, chromium: Any, viewport: dict[str, int]) -> None:
    # settings with long names that the two recipes do not share
    config = runs / "half" / "config.yaml"
    config.write_text(re.sub(r"(_prompt|_iteration|_share): [\d.]+", r"\1: 3", config.read_text()))
    with running(runs) as studio:
        for address, part in views(studio):
            page = open_page(chromium, f"{studio.url}/{address}", viewport)
            page.locator(part).first.wait_for()
            check(page, address)
            if address.endswith("recipe"):
                page.locator(".difference code").first.wait_for()
                assert page.evaluate(BROKEN) == []
            page.context.close()


@pytest.mark.parametrize("viewport", WIDTHS)
def test_a_vote_can_be_read_from_its_first_question_to_its_results(
    runs: Path, tmp_path: Path, chromium: Any, viewport: dict[str, int]
) -> None:
    booth = Booth(runs / "done", runs / "half", None, tmp_path / "votes.jsonl")
    with running(booth=booth) as studio:
        page = open_page(chromium, studio.url, viewport)
        page.get_by_label("Your name").fill("Ann")
        page.keyboard.press("Enter")
        for question in ("subject of the reference", "prompt says"):
            page.get_by_role("heading", name=question).wait_for()
            check(page, question)
            page.keyboard.press("ArrowLeft")
        page.get_by_text("1 of 8 done").wait_for()
        page.goto(f"{studio.url}/#/vote/results")
        page.get_by_text("1 of 1").first.wait_for()
        check(page, "results")
        page.context.close()


def test_on_paper_every_chart_is_drawn_though_it_was_never_in_sight(runs: Path, chromium: Any) -> None:
    with running(runs) as studio:
        address = f"{studio.url}/#/runs/{studio.run('done')['id']}/charts"
        page = open_page(chromium, address, looks.DESKTOP)
        page.locator("svg.chart .line").first.wait_for()
        empty = (
            "() => [...document.querySelectorAll('svg.chart')]"
            ".filter((chart) => !chart.childElementCount).length"
        )
        assert page.evaluate(empty) > 0
        page.pdf()
        assert page.evaluate(empty) == 0
        page.context.close()
