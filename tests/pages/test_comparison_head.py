"""What a comparison says first: alarms arm by arm, and a verdict that agrees with its sentences."""

from __future__ import annotations

import copy
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from comparison_results import ARMS, comparison
from customized_grpo.comparison.verdicts import verdicts
from customized_grpo.pages.comparison_data import read_comparison
from customized_grpo.pages.comparison_head import read_head
from customized_grpo.pages.comparison_page import render_comparison_page
from customized_grpo.pages.comparison_tables import Cell, arm_table

DOCS = Path(__file__).parents[2] / "docs" / "results"


def published(name: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(gzip.decompress((DOCS / name).read_bytes()))
    return results


def names(pattern: str, verdict: str) -> list[str]:
    found = re.search(pattern, verdict)
    return found[1].split(", ") if found else []


@pytest.mark.parametrize("name", ["toybox.json.gz", "two-scale.json.gz"])
def test_the_verdict_names_as_cures_what_the_sentences_call_cures(name: str) -> None:
    data = read_comparison(published(name))
    head = read_head(data)
    cures = set(names(r"reaches: ([^.]+)\.", head.verdict))
    others = set(names(r"(?:Not shown for|is shown, of): ([^.]+)\.", head.verdict))
    methods = [arm for arm in data.arms if arm.role == "method" and arm.result.get("outside_front")]
    assert methods
    for arm in methods:
        is_cure = any(text.startswith(f"{arm.label} is a cure") for text in head.sentences)
        assert arm.label in (cures if is_cure else others)
    assert cures | others == {arm.label for arm in methods}


def test_alarms_are_counted_by_arm_and_lead_the_page() -> None:
    results = comparison(copy.deepcopy(ARMS[:3]), 2)
    for run in results["runs"]:
        alarmed = run["arm"] == "naive-0.5" or (run["arm"], run["seed"]) == ("naive-0.3", 1)
        run["alarms"] = ["copy_score", "held_out/identity"] if alarmed else []
    results["analysis"]["verdicts"] = verdicts(results["arms"], results["runs"], {"arms": []})
    head = read_head(read_comparison(results))
    assert [(entry.arm.name, entry.runs, entry.names) for entry in head.alarmed] == [
        ("naive-0.3", 1, ["copy_score", "held_out/identity"]),
        ("naive-0.5", 2, ["copy_score", "held_out/identity"]),
    ]
    assert head.alarms == "Alarms stood at the end of 3 of 6 runs. They qualify all that follows."
    page = render_comparison_page(results)
    # said once, before all else but the name
    assert page.count("Alarms stood") == 1
    body = page[page.index("<h1>") :]
    assert body.index("Alarms stood") < body.index("<figure") and body.index("Alarms stood") < body.index(
        "<h2"
    )


def test_without_alarms_there_is_no_box() -> None:
    assert 'class="alarms"' not in render_comparison_page(comparison(ARMS[:3], 2))


def test_one_seed_makes_no_verdict() -> None:
    assert read_head(read_comparison(comparison(ARMS[:5], 1))).verdict == ""


def test_an_arm_outside_the_front_that_degraded_is_no_cure() -> None:
    results = comparison(copy.deepcopy(ARMS[:5]), 2)
    [entry] = [entry for entry in results["analysis"]["arms"] if entry["name"] == "customized-grpo"]
    entry["outside_front"]["outside"] = True
    entry["degraded"] = 0
    assert read_head(read_comparison(results)).verdict.startswith("A cure, outside all")
    entry["degraded"] = 1
    assert read_head(read_comparison(results)).verdict.startswith("No cure is shown")


def test_one_seed_that_an_arm_shares_with_the_front_makes_no_verdict() -> None:
    results = comparison(copy.deepcopy(ARMS[:5]), 2)
    [entry] = [entry for entry in results["analysis"]["arms"] if entry["name"] == "customized-grpo"]
    entry["outside_front"] |= {"outside": True, "seeds": 2}
    entry["degraded"] = 0
    assert read_head(read_comparison(results)).verdict.startswith("A cure, outside all")
    assert outside_cell(results) == Cell("87\u00a0%", "outside", "better")
    entry["outside_front"]["seeds"] = 1
    assert read_head(read_comparison(results)).verdict == ""
    assert outside_cell(results) == Cell("87\u00a0%", "one seed")


def outside_cell(results: dict[str, Any]) -> Cell:
    table = arm_table(read_comparison(results))
    column = table.columns.index("outside front")
    [cells] = [cells for arm, cells in table.rows if arm.name == "customized-grpo"]
    return cells[column]
