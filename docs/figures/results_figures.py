"""The figures of docs/results.md as SVG files: python docs/figures/results_figures.py RESULTS FOLDER [--all].

RESULTS is results.json of a comparison or what `cgrpo doctor --json` writes, or one of them compressed
(NAME.json.gz). Each figure has its own style sheet, light and dark. With --all they are all of its page.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path
from typing import Any

from customized_grpo.pages.comparison_curves import curves
from customized_grpo.pages.comparison_data import read_comparison
from customized_grpo.pages.comparison_plane import pareto
from customized_grpo.pages.decision_figures import decision_section
from customized_grpo.pages.figures import Figure
from customized_grpo.pages.standalone import standalone

IN_DOCS = ("Identity against prompt", "Still open, by the held-out judges")
"""Titles of the figures that the docs show."""


def read_results(path: Path) -> dict[str, Any]:
    """Return the content of results.json, compressed or not."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    results: dict[str, Any] = json.loads(content)
    return results


def find_figures(results: dict[str, Any]) -> list[Figure]:
    """Return the figures of a comparison or of an examination."""
    figures: list[Figure] = []
    if "arms" in results:
        data = read_comparison(results)
        plane = pareto(data)
        if plane is not None:
            figures.append(plane.figure)
        figures += curves(data).figures
    decisions = decision_section(results.get("decisions") or {})
    if decisions is not None:
        figures += decisions.figures
    return figures


def main() -> None:
    """Write one file per figure and print their names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--all", action="store_true", help="all figures of the page, not those of the docs alone"
    )
    arguments = parser.parse_args()
    results = read_results(arguments.results)
    name = arguments.results.name.partition(".")[0]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for figure in find_figures(results):
        if not arguments.all and figure.title not in IN_DOCS:
            continue
        title = re.sub(r"[^a-z]+", "-", figure.title.lower()).strip("-")
        path = arguments.folder / f"{name}-{title}.svg"
        path.write_text(standalone(str(figure.chart)), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
