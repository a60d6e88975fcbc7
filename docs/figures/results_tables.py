"""The tables of docs/results.md as Markdown.

    python docs/figures/results_tables.py RESULTS [--runs] [--between ARM ...]

RESULTS is results.json of a comparison, or the same compressed (NAME.json.gz). The statistics are computed
again from its runs by the code of `cgrpo compare`.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results_figures import read_results

from customized_grpo.comparison.analysis import analyse
from customized_grpo.comparison.definitions import IDENTITY, PROMPT
from customized_grpo.pages.plots.numbers import p_text
from customized_grpo.statistics.intervals import paired_difference

SHOWN_RUNS = ("customized-grpo", "naive-0.5")
"""Arms of the table of single runs."""

Record = Mapping[str, Any]


def arm_rows(results: Record) -> list[str]:
    """Return a row for the base and for each arm: both qualities, margin, degraded runs, alarms.

    Constant weights come first, from the smallest of the prompt on.
    """
    analysis = analyse(results["arms"], results["runs"])
    entries = {entry["name"]: entry for entry in analysis["arms"]}
    base = analysis["base"]
    rows = [_row("base", _interval(base[PROMPT]), _interval(base[IDENTITY]), "", "", "")]
    for arm in sorted(results["arms"], key=_weight):
        entry = entries[arm["name"]]
        if entry["final"] is None:
            continue
        outside = entry["outside_front"]
        margin = _interval(outside["margin"], "+") if outside else ""
        prompt = _interval(entry["final"][PROMPT])
        identity = _interval(entry["final"][IDENTITY])
        degraded = f"{entry['degraded']} of {entry['runs']}"
        rows.append(_row(arm["label"], prompt, identity, margin, degraded, _alarms(results, arm["name"])))
    return rows


def _weight(arm: Record) -> float:
    """Return the constant weight of an arm of the front; infinity, which sorts last, for all others."""
    return float(arm["overrides"]["schedule.prompt_weight"]) if arm["role"] == "front" else math.inf


def _alarms(results: Record, arm: str) -> str:
    """Return how many runs of an arm ended with an alarm, and the one that stood most often."""
    ended = [run["alarms"] for run in results["runs"] if run["arm"] == arm]
    counts = Counter(itertools.chain.from_iterable(ended))
    if not counts:
        return "none"
    alarmed = sum(bool(alarms) for alarms in ended)
    # alphabetical among equals, so that a table made again is the same
    often = min(counts, key=lambda alarm: (-counts[alarm], alarm))
    return f"{alarmed}: {often}"


def run_rows(results: Record) -> list[str]:
    """Return, by seed, the paired changes of the shown arms against the base; intervals are over subjects."""
    runs = {(run["arm"], run["seed"]): run for run in results["runs"]}
    rows: list[str] = []
    for seed in results["seeds"]:
        cells = [str(seed)]
        for arm in SHOWN_RUNS:
            run = runs.get((arm, seed))
            cells += ["", ""] if run is None else [_change(run, PROMPT), _change(run, IDENTITY)]
        rows.append(_row(*cells))
    return rows


def _change(run: Record, metric: str) -> str:
    difference = paired_difference(run["after"][metric], run["before"][metric], run["subjects"])
    return _interval({"mean": difference.mean, "low": difference.low, "high": difference.high}, "+")


def difference_rows(results: Record, names: Sequence[str]) -> list[str]:
    """Return the differences between the margins of the named methods."""
    analysis = analyse(results["arms"], results["runs"])
    labels = {arm["name"]: arm["label"] for arm in results["arms"]}
    rows: list[str] = []
    for entry in analysis["margin_differences"]:
        if entry["arm"] in names and entry["other"] in names:
            rows.append(_row(f"{labels[entry['arm']]} minus {labels[entry['other']]}", _interval(entry, "+")))
    return rows


def control_rows(results: Record) -> list[str]:
    """Return the paired differences of each arm from its control, with Holm's p-values over all of them."""
    analysis = analyse(results["arms"], results["runs"])
    labels = {arm["name"]: arm["label"] for arm in results["arms"]}
    rows: list[str] = []
    for entry in analysis["arms"]:
        against = entry["against_control"]
        if against is not None:
            name = f"{labels[entry['name']]} minus {labels[against['control']]}"
            rows.append(_row(name, _tested(against[PROMPT]), _tested(against[IDENTITY])))
    return rows


def _tested(measured: Mapping[str, float]) -> str:
    return f"{_interval(measured, '+')}, {p_text(measured['p_holm'])}"


def _interval(measured: Mapping[str, float], sign: str = "") -> str:
    # z: what rounds to zero has no minus sign
    number = f"{sign}z.2f"
    return f"{measured['mean']:{number}} [{measured['low']:{number}}, {measured['high']:{number}}]"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--runs", action="store_true", help=f"also single runs of {' and '.join(SHOWN_RUNS)}")
    parser.add_argument("--between", nargs="*", default=(), help="methods whose margins are compared")
    arguments = parser.parse_args()
    results = read_results(arguments.results)
    tables = [arm_rows(results), difference_rows(results, arguments.between), control_rows(results)]
    if arguments.runs:
        tables.append(run_rows(results))
    for rows in tables:
        print("\n".join(rows), end="\n\n")


if __name__ == "__main__":
    main()
