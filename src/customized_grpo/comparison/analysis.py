"""From runs to statistics: intervals of every arm, differences from controls, quadrants, the front."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from customized_grpo.comparison.definitions import IDENTITY, METRICS, PROMPT
from customized_grpo.comparison.front import Front
from customized_grpo.comparison.tables import Floats, Tables
from customized_grpo.statistics.crossed import crossed_interval, holm

QUADRANTS = ("conflict", "both_positive", "both_negative")


def analyse(arms: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the statistics of a comparison.

    Args:
        arms: Entries of the plan: name, role, control.
        runs: Entries of `results.collect`.
    """
    tables = Tables.from_runs(runs)
    names = [arm["name"] for arm in arms]
    front = Front([arm["name"] for arm in arms if arm["role"] == "front"], tables)
    against = _against_controls(arms, tables)
    gains = [(name, front.gain(name)) for name in names]
    methods = [arm["name"] for arm in arms if arm["role"] == "method"]
    return {
        # The base is one run: a table of one row, whose interval is about new subjects alone.
        "base": {metric: crossed_interval(table[None]).to_json() for metric, table in tables.before.items()},
        "arms": [_arm(name, runs, tables, front, against.get(name)) for name in names],
        "front": front.to_json(),
        "hypervolume_gain": [{"arm": name, **gain} for name, gain in gains if gain is not None],
        "margin_differences": _margin_differences(methods, front),
    }


def _arm(
    name: str,
    runs: Sequence[Mapping[str, Any]],
    tables: Tables,
    front: Front,
    against: dict[str, Any] | None,
) -> dict[str, Any]:
    # An unfinished run has no final point.
    own = [run for run in runs if run["arm"] == name and run["state"] == "finished"]
    scores = tables.arms.get(name)
    return {
        "name": name,
        "runs": len(own),
        "final": _intervals(scores.after) if scores is not None else None,
        "change": _intervals(scores.change) if scores is not None else None,
        # None, which is not judged, must not count
        "degraded": sum(run["degraded"] is True for run in own),
        "outside_front": front.outside(name),
        "against_control": against,
        "quadrants": _quadrants(own),
        "group_std": _group_std(own),
    }


def _margin_differences(methods: Sequence[str], front: Front) -> list[dict[str, Any]]:
    """Return by how much further outside the front each method lies than each one after it."""
    differences: list[dict[str, Any]] = []
    for arm, other in itertools.combinations(methods, 2):
        difference = front.difference(arm, other)
        if difference is not None:
            differences.append({"arm": arm, "other": other, **difference})
    return differences


def _intervals(tables: Mapping[str, Floats]) -> dict[str, dict[str, float]]:
    return {metric: crossed_interval(tables[metric]).to_json() for metric in METRICS if metric in tables}


def _against_controls(arms: Sequence[Mapping[str, Any]], tables: Tables) -> dict[str, dict[str, Any]]:
    """Return, by arm, the paired differences from its control, with Holm's p-values over all of them."""
    against: dict[str, dict[str, Any]] = {}
    tests: list[dict[str, float]] = []
    for arm in arms:
        if arm["control"] is None:
            continue
        entry: dict[str, Any] = {"control": arm["control"]}
        for metric in (IDENTITY, PROMPT):
            difference = tables.paired(arm["name"], arm["control"], metric)
            if difference is not None:
                interval = crossed_interval(difference)
                entry[metric] = interval.to_json()
                entry["seeds"] = min(interval.seeds, entry.get("seeds", interval.seeds))
                tests.append(entry[metric])
        # Both measures or none: the verdict states both.
        if {IDENTITY, PROMPT} <= entry.keys():
            against[arm["name"]] = entry
    # Over all arms and both measures at once, as the definitions say.
    adjusted = holm([test["p"] for test in tests])
    for test, p in zip(tests, adjusted, strict=True):
        test["p_holm"] = p  # `against` holds the same objects
    return against


def _quadrants(runs: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Return the mean shares of the training samples of all runs, and their null."""
    columns = {name: f"advantage/{name}" for name in QUADRANTS}
    columns["null"] = "advantage/conflict_null"
    return _means(runs, columns)


def _group_std(runs: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Return the mean spread of each reward inside groups over the last third of training."""
    return _means(runs, {kind: f"reward/{kind}_group_std" for kind in ("prompt", "identity")}, last=1 / 3)


def _means(
    runs: Sequence[Mapping[str, Any]], columns: Mapping[str, str], last: float = 1.0
) -> dict[str, float] | None:
    """Return the mean of each column over the last share of training; None where one was never measured."""
    records: list[Mapping[str, Any]] = []
    for run in runs:
        # By records, not by iterations: a run that logs less often counts less.
        start = int(len(run["train"]) * (1 - last))
        records += run["train"][start:]
    means: dict[str, float] = {}
    for name, column in columns.items():
        values = [record[column] for record in records if record.get(column) is not None]
        if not values:
            return None
        means[name] = sum(values) / len(values)
    return means
