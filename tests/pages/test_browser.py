"""The pages in a real browser: on a phone, in the dark, on paper, and for people who see less than others."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import browser as looks
from comparison_results import ARMS, comparison, many_arms
from customized_grpo.benchmarks.compare import compare_results
from customized_grpo.benchmarks.page import SampleImage, write_benchmark_page
from customized_grpo.benchmarks.results import Result, Table, make_result
from customized_grpo.comparison.existing_run import compare_runs
from customized_grpo.evaluation.scores import HeldOutScores
from customized_grpo.files import write_json
from customized_grpo.pages.comparison_page import write_comparison_page
from customized_grpo.pages.doctor_page import write_doctor_page
from customized_grpo.pages.run_page import write_report

from .conftest import RunFolder

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(looks.CHROMIUM is None, reason=looks.NO_CHROMIUM),
]

PAGES = ("report", "comparison", "many", "runs", "benchmark", "doctor")
LONG = PAGES[:-1]
"""Pages with contents and folded parts; an examination needs none."""
DOCS = Path(__file__).parents[2] / "docs"
SMALLEST_PX = 11
READABLE = 4.5
"""Least contrast of text by WCAG 2, level AA."""


def write_run(folder: Path) -> Path:
    """Write the report of a run with everything in it and an alarm that stands."""
    run = RunFolder(folder / "run")
    run.metrics()
    run.samples()
    run.summary()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(
            '{"kind": "event", "iteration": 200, "event": "alarm", "alarm": "a", "message": "it copies"}\n'
        )
    return write_report(run.path)


def write_comparison(folder: Path, name: str, results: dict[str, Any]) -> Path:
    for run in results["runs"]:
        run["alarms"] = ["held_out/identity"] if run["arm"] == results["arms"][0]["name"] else []
    return write_comparison_page(results, folder / f"{name}.html")


def write_runs(folder: Path) -> Path:
    """Write the page of three existing runs, of which one ended with an alarm."""
    runs = []
    for number, name in enumerate(("naive", "customized-grpo", "a-run-with-a-rather-long-name")):
        run = RunFolder(folder / "runs" / name)
        run.metrics()
        run.samples()
        write_evaluations(run.path, gain=0.05 * number)
        config = (run.path / "config.yaml").read_text()
        changed = config.replace("seed: 0", f"seed: {number}").replace("gamma: 0.4", f"gamma: 0.{number + 1}")
        (run.path / "config.yaml").write_text(changed)
        runs.append(run.path)
    alarm = {"kind": "event", "iteration": 200, "event": "alarm", "alarm": "a", "message": "it copies"}
    with (runs[0] / "metrics.jsonl").open("a") as file:
        file.write(f"{json.dumps(alarm)}\n")
    _, page = compare_runs(runs, folder / "runs-compared")
    return page


def write_evaluations(run: Path, gain: float) -> None:
    """Write the held-out scores before and after training, and the checkpoint that was judged."""
    rng = np.random.default_rng(0)
    subjects = [f"toy {number // 2}" for number in range(20)]
    base = rng.uniform(0.3, 0.7, 20)
    step = run / "checkpoints" / "step_000200"
    step.mkdir(parents=True)
    (run / "evaluations").mkdir()
    for iteration, values in ((0, base), (200, base + gain + rng.normal(0, 0.02, 20))):
        names = ("judge/identity", "judge/prompt", "reward/identity", "reward/prompt", "monitor/copy_score")
        columns = {name: values.tolist() for name in names}
        ids = [f"row {number}" for number in range(20)]
        table = HeldOutScores(columns, ids=ids, subjects=subjects)
        write_json(run / "evaluations" / f"iteration_{iteration:06d}.json", table.to_json())
    write_json(step / "COMMIT.json", {})
    write_json(step / "state.json", {"contents": {"data.held_out.rows": "1"}})


def benchmark_result(name: str, shift: float) -> Result:
    rng = np.random.default_rng(0)
    subjects = [f"subject {k}" for k in range(10) for _ in range(4)]
    columns = {metric: rng.normal(0.5, 0.1, 40) + shift for metric in ("dino_v1", "dino", "clip_i", "clip_t")}
    kinds = ["live" if row < 20 else "object" for row in range(40)]
    table = Table([f"{row}/0" for row in range(40)], subjects, kinds, ["all"] * 40, columns)
    protocol = {
        "benchmark": "dreambench", "steps": 28, "guidance": 2.5, "height": 512, "width": 512, "seed": 0,
        "reference_mode": "single", "encoders": {"dino": {"weights": "abc"}},
    }  # fmt: skip
    return make_result({"name": name, "weights": "0123456789ab"}, protocol, table)


def write_benchmark(folder: Path) -> Path:
    base, tuned = (benchmark_result(name, shift) for name, shift in (("base", 0.0), ("tuned", 0.05)))
    image = Image.new("RGB", (64, 64), "teal")
    samples = [SampleImage("a dog on a beach", "dog", image, image, {"dino": 0.5, "clip_t": 0.25})] * 3
    return write_benchmark_page(folder / "benchmark.html", tuned, compare_results(base, tuned), samples)


def write_examination(folder: Path) -> Path:
    """Write the page of the examination whose findings are committed, with a problem of a long name."""
    findings = json.loads(gzip.decompress((DOCS / "results" / "toybox-decisions.json.gz").read_bytes()))
    findings["problems"] = [
        {"problem": f"{'a_long_name_of_a_reward' * 3} is constant", "fix": "Leave it out."}
    ]
    write_doctor_page(findings, "toybox", folder / "doctor.html")
    return folder / "doctor.html"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {
        "report": write_run(folder),
        "comparison": write_comparison(folder, "comparison", comparison(ARMS, 3)),
        "many": write_comparison(folder, "many", comparison(many_arms(28), 2)),
        "runs": write_runs(folder),
        "benchmark": write_benchmark(folder),
        "doctor": write_examination(folder),
    }


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with looks.chromium(sync_api) as browser:
        yield browser


@pytest.fixture
def show(chromium: Any, pages: dict[str, Path]) -> Iterator[Any]:
    contexts = []

    def show(name: str, viewport: dict[str, int], *, media: str = "screen", scheme: str = "light") -> Any:
        contexts.append(chromium.new_context(viewport=viewport, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.emulate_media(media=media, color_scheme=scheme)
        page.goto(pages[name].as_uri())
        return page

    yield show
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", PAGES)
def test_on_a_phone_no_letter_is_small_and_nothing_scrolls_sideways(show: Any, name: str) -> None:
    page = show(name, looks.PHONE)
    open_all(page)
    sizes = page.evaluate(looks.SIZES)
    assert len(sizes) > 50
    assert [entry for entry in sizes if entry[0] < SMALLEST_PX - 0.05] == []
    assert page.evaluate(looks.SIDEWAYS) <= 0


def open_all(page: Any) -> None:
    page.evaluate("() => document.querySelectorAll('details').forEach((part) => (part.open = true))")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(
    ("media", "scheme"), [("screen", "light"), ("screen", "dark"), ("print", "light"), ("print", "dark")]
)
def test_every_text_can_be_told_from_its_background(show: Any, name: str, media: str, scheme: str) -> None:
    page = show(name, looks.DESKTOP, media=media, scheme=scheme)
    open_all(page)
    contrasts = page.evaluate(looks.CONTRASTS)
    assert len(contrasts) > 50
    assert [entry for entry in contrasts if entry[0] < READABLE] == []


@pytest.mark.parametrize("name", ["report", "comparison", "many", "runs", "doctor"])
@pytest.mark.parametrize(
    ("viewport", "media"), [(looks.PHONE, "screen"), (looks.DESKTOP, "screen"), (looks.PAPER, "print")]
)
def test_no_label_leaves_its_chart_or_covers_another(
    show: Any, name: str, viewport: dict[str, int], media: str
) -> None:
    page = show(name, viewport, media=media)
    open_all(page)
    assert page.evaluate(looks.STICKING_OUT) == []
    assert page.evaluate(looks.OVERLAPS) == []


@pytest.mark.parametrize("viewport", [looks.PHONE, looks.DESKTOP])
def test_no_row_of_a_table_covers_the_next(show: Any, viewport: dict[str, int]) -> None:
    page = show("benchmark", viewport)
    covered = page.evaluate(
        """() => {
          const bottom = (row) => {
            const letters = document.createRange();
            letters.selectNodeContents(row);
            return letters.getBoundingClientRect().bottom;
          };
          const isCovering = (row) => {
            const next = row.nextElementSibling;
            return next && bottom(row) > next.getBoundingClientRect().top + 2;
          };
          return [...document.querySelectorAll('tr')].filter(isCovering).map((row) => row.textContent.trim());
        }"""
    )
    assert covered == []


@pytest.mark.parametrize("name", ["report", "comparison", "runs"])
def test_alarms_are_the_first_thing_said(show: Any, name: str) -> None:
    page = show(name, looks.PHONE)
    box = page.locator(".alarms").bounding_box()
    assert box is not None and 0 < box["y"] < 150
    above = page.evaluate(
        "(top) => [...document.querySelectorAll('main p, main li, main dd, main svg, main img')]"
        ".filter((element) => element.getBoundingClientRect().top < top).map((element) => element.className)",
        box["y"],
    )
    assert above == ["kicker"]


@pytest.mark.parametrize("viewport", [looks.PHONE, looks.DESKTOP])
def test_a_comparison_begins_with_its_verdict_and_its_first_figure(
    show: Any, viewport: dict[str, int]
) -> None:
    page = show("comparison", viewport)
    figure = page.locator("figure svg").first.bounding_box()
    assert figure is not None
    prose = page.evaluate(
        "(top) => [...document.querySelectorAll('main p, main li')]"
        ".map((element) => element.getBoundingClientRect()).filter((box) => box.bottom < top)"
        ".reduce((sum, box) => sum + box.height, 0)",
        figure["y"],
    )
    assert figure["y"] < viewport["height"] / 2 and prose < 200


@pytest.mark.parametrize("name", LONG)
def test_paper_has_the_folded_parts_and_the_colours(show: Any, name: str) -> None:
    page = show(name, looks.PAPER, media="print")
    parts = page.locator("details")
    assert parts.count() > 0 and page.locator("details[open]").count() == 0
    heights = page.evaluate(
        "() => [...document.querySelectorAll('details')].map((part) => part.getBoundingClientRect().height"
        " - part.querySelector('summary').getBoundingClientRect().height)"
    )
    assert min(heights) > 20
    kept = page.evaluate(
        "() => [...document.querySelectorAll('.patch, .divided, .chart')]"
        ".map((element) => getComputedStyle(element).printColorAdjust)"
    )
    assert kept and set(kept) == {"exact"}
    assert page.evaluate(looks.SIDEWAYS) <= 0


def test_no_figure_is_cut_by_the_end_of_a_page(show: Any) -> None:
    page = show("report", looks.PAPER, media="print")
    breaks = page.evaluate(
        "() => [...document.querySelectorAll('figure, .sample, tr')]"
        ".map((element) => getComputedStyle(element).breakInside)"
    )
    assert breaks and set(breaks) == {"avoid"}


@pytest.mark.parametrize("name", LONG)
def test_the_contents_lead_to_the_sections(show: Any, name: str) -> None:
    page = show(name, looks.DESKTOP)
    links = page.locator(".contents a")
    assert links.count() >= 4
    last = links.last
    heading = last.inner_text()
    last.click()
    box = page.get_by_role("heading", name=heading, exact=True).bounding_box()
    assert box is not None and 0 <= box["y"] < looks.DESKTOP["height"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_nobody_and_complains_of_nothing(
    chromium: Any, pages: dict[str, Path], name: str
) -> None:
    page = chromium.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name].as_uri())
    page.wait_for_load_state("networkidle")
    page.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]


def test_no_word_of_a_table_is_broken_on_a_phone_and_nothing_is_behind_its_edge(show: Any) -> None:
    """Names of settings were columns of seven letters, and values were out of sight."""
    for name in ("runs", "benchmark"):
        page = show(name, looks.PHONE)
        behind = page.evaluate(
            "() => [...document.querySelectorAll('section:first-of-type td, table.stack td')]"
            ".map((cell) => cell.getBoundingClientRect()).filter((box) => box.right > innerWidth).length"
        )
        lines = page.evaluate(
            "() => [...document.querySelectorAll('table.stack .wide-cell code')]"
            ".map((name) => name.getClientRects().length)"
        )
        assert behind == 0 and set(lines) <= {1}
        assert name == "benchmark" or len(lines) > 1


def test_five_images_of_a_prompt_stand_in_one_line_on_a_phone(show: Any) -> None:
    page = show("runs", looks.PHONE)
    tops = page.locator(".drawn").first.evaluate(
        "(line) => [...line.querySelectorAll('img')].map((image) => image.getBoundingClientRect().top)"
    )
    assert len(tops) == 5 and len(set(tops)) == 1
