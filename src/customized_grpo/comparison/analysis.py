"""From runs to statistics: intervals of every arm, differences from controls, quadrants, the front."""

from __future__ import annotations

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
    tables = Tables.of(runs)
    front = Front([arm["name"] for arm in arms if arm["role"] == "front"], tables)
    against = _against_controls(arms, tables)
    entries = [_arm(arm["name"], runs, tables, front, against.get(arm["name"])) for arm in arms]
    return {
        "base": {metric: crossed_interval(table[None]).to_json() for metric, table in tables.before.items()},
        "arms": entries,
        "front": front.to_json(),
        "hypervolume_gain": [
            {"arm": arm["name"], **gain} for arm in arms if (gain := front.gain(arm["name"])) is not None
        ],
    }


def _arm(
    name: str,
    runs: Sequence[Mapping[str, Any]],
    tables: Tables,
    front: Front,
    against: dict[str, Any] | None,
) -> dict[str, Any]:
    own = [run for run in runs if run["arm"] == name and run["state"] == "finished"]
    measured = name in tables.seeds
    return {
        "name": name,
        "runs": len(own),
        "final": _intervals(tables.after[name]) if measured else None,
        "change": _intervals(tables.change[name]) if measured else None,
        "degraded": sum(run["degraded"] is True for run in own),
        "outside_front": front.outside(name),
        "against_control": against,
        "quadrants": _quadrants(own),
        "group_std": _group_std(own),
    }


def _intervals(tables: Mapping[str, Floats]) -> dict[str, dict[str, float]]:
    return {metric: crossed_interval(tables[metric]).to_json() for metric in METRICS if metric in tables}


def _against_controls(arms: Sequence[Mapping[str, Any]], tables: Tables) -> dict[str, dict[str, Any]]:
    """Return, by arm, the paired differences from its control, with Holm's p-values over all of them."""
    tests: dict[tuple[str, str], dict[str, float]] = {}
    controls = {arm["name"]: arm["control"] for arm in arms if arm["control"] is not None}
    for name, control in controls.items():
        for metric in (IDENTITY, PROMPT):
            difference = tables.paired(name, control, metric)
            if difference is not None:
                tests[name, metric] = crossed_interval(difference).to_json()
    for test, p in zip(tests.values(), holm([test["p"] for test in tests.values()]), strict=True):
        test["p_holm"] = p
    return {
        name: {"control": control, **{metric: tests[name, metric] for metric in (IDENTITY, PROMPT)}}
        for name, control in controls.items()
        if (name, IDENTITY) in tests and (name, PROMPT) in tests
    }


def _quadrants(runs: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Return the mean shares of the training samples of all runs, and their null."""
    names = {**{name: f"advantage/{name}" for name in QUADRANTS}, "null": "advantage/conflict_null"}
    return _means(runs, names)


def _group_std(runs: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Return the mean spread of each reward inside groups over the last third of training."""
    return _means(runs, {kind: f"reward/{kind}_group_std" for kind in ("prompt", "identity")}, last=1 / 3)


def _means(
    runs: Sequence[Mapping[str, Any]], columns: Mapping[str, str], last: float = 1.0
) -> dict[str, float] | None:
    records = [record for run in runs for record in run["train"][int(len(run["train"]) * (1 - last)) :]]
    values = {
        name: [record[column] for record in records if record.get(column) is not None]
        for name, column in columns.items()
    }
    return {name: sum(v) / len(v) for name, v in values.items()} if all(values.values()) else None
