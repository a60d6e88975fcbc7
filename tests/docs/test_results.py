"""Every number in the tables of results is what the committed runs give."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

import forked

pytestmark = pytest.mark.slow

STYLE = re.compile("<style>.*?</style>", re.DOTALL)
MARGIN = re.compile(r"[+-]\.\d\d \[[+-]\.\d\d, [+-]\.\d\d\]")
REPOSITORY = Path(__file__).parents[2]
BETWEEN = ("customized-grpo", "tdw", "tdw-sharp-sars", "tdw-calibrated-sars")
"""The methods whose margins docs/results.md compares."""


TABLES = {
    "toybox": ("--runs", "--between", *BETWEEN),
    "two-scale": ("--between", *BETWEEN),
    "toybox-nft": (),
    "toybox-awm": (),
}
"""What the pages show of the committed results, as options of the tool."""


def draw(script: str, name: str, *arguments: object) -> str:
    """Run a script on committed results; return what it printed."""
    results = REPOSITORY / "docs" / "results" / f"{name}.json.gz"
    done = forked.python(REPOSITORY / "docs" / "figures" / script, results, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def print_rows(name: str) -> tuple[str, ...]:
    """Return the rows that the tool prints for committed results."""
    printed = draw("results_tables.py", name, *TABLES[name])
    return tuple(row for row in printed.split("\n") if row)


def margins_by_arm(name: str) -> dict[str, str]:
    """Return the margin of each arm as README writes it: without the zeros before the points."""
    cells = [[cell.strip() for cell in row.split("|")] for row in print_rows(name)]
    return {row[1]: row[4].replace("0.", ".") for row in cells if len(row) == 8}


def rows_of(page: str) -> set[str]:
    return set((REPOSITORY / page).read_text(encoding="utf-8").split("\n"))


def test_the_tables_of_toybox_are_those_of_the_committed_runs() -> None:
    rows = print_rows("toybox")
    assert len(rows) == 24 + 6 + 16 + 8
    assert set(rows) <= rows_of("docs/results.md")


def test_the_tables_of_two_scale_are_those_of_the_committed_runs() -> None:
    rows = print_rows("two-scale")
    assert len(rows) == 22 + 6 + 13
    assert set(rows) <= rows_of("docs/results.md")


@pytest.mark.parametrize("name", ["toybox", "toybox-decisions"])
def test_the_figures_are_those_that_the_page_shows_and_no_others(tmp_path: Path, name: str) -> None:
    draw("results_figures.py", name, tmp_path)
    [drawn] = tmp_path.iterdir()
    committed = REPOSITORY / "docs" / "images" / drawn.name
    # a style sheet may change without a change of the figure
    assert STYLE.sub("", drawn.read_text()) == STYLE.sub("", committed.read_text())
    assert f"(images/{drawn.name})" in (REPOSITORY / "docs" / "results.md").read_text()


def test_the_margins_of_the_readme_are_those_of_the_committed_runs() -> None:
    """Each sentence has the margin of ToyBox, then that of two-scale, and no other interval."""
    margins = margins_by_arm("toybox"), margins_by_arm("two-scale")
    readme = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())
    sentences = readme[readme.index("1. No constant weight") : readme.index("![Held-out identity")]
    arms = ("Customized-GRPO", "TDW only", "inverse TDW", "SARS only")
    expected = [of_world[arm] for arm in arms for of_world in margins]
    assert MARGIN.findall(sentences) == expected


@pytest.mark.parametrize("algorithm", ["NFT", "AWM"])
def test_the_runs_of_nft_and_awm_on_toybox_are_those_of_the_committed_results(algorithm: str) -> None:
    rows = [row for row in print_rows(f"toybox-{algorithm.lower()}") if row.count("|") == 7]
    labels = ["base", f"{algorithm}, naive 1:1", f"{algorithm}, SARS + TDW"]
    assert [row.split("|")[1].strip() for row in rows] == labels
    page = rows_of("docs/algorithms.md")
    for row in rows[1:]:
        qualities = "|".join(row.split("|")[:4])
        assert any(shown.startswith(qualities) for shown in page), row
