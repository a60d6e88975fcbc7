"""What the runs of a plan say, as plain data: `results.json` without its analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from customized_grpo.comparison.definitions import METRICS, PROMPT, PROXY
from customized_grpo.comparison.plan import Plan, PlannedRun
from customized_grpo.errors import UserError
from customized_grpo.evaluation.scores import HeldOutScores
from customized_grpo.reporting.metrics import Record, read_metrics

EVAL_COLUMNS = ("iteration", "rollouts", *METRICS)
TRAIN_COLUMNS = (
    "iteration",
    "rollouts",
    "reward/prompt_group_std",
    "reward/identity_group_std",
    "advantage/conflict",
    "advantage/both_positive",
    "advantage/both_negative",
    "advantage/conflict_null",
    "advantage/rho",
)
DIGITS = 6
"""Significant digits of every number: far below any interval, and the file stays small."""


def collect(plan: Plan) -> dict[str, Any]:
    """Return the plan and one entry per run.

    A finished run has, besides its curves, `subjects`, the mean of every subject before and after training
    ([C] for each metric), which all statistics are made of.

    Raises:
        UserError: Finished runs were judged on different prompts.
    """
    runs = [_entry(run) for run in plan.runs()]
    finished = [run for run in runs if run["state"] == "finished"]
    if other := [run for run in finished if run["prompts"] != finished[0]["prompts"]]:
        names = f"{other[0]['arm']} (seed {other[0]['seed']}) and {finished[0]['arm']}"
        raise UserError(f"{names} were judged on different held-out prompts, so they cannot be paired")
    for run in runs:
        run.pop("prompts", None)
    return {
        "format": 1,
        **plan.to_json(),
        "versions": _versions(plan.runs()),
        "runs": runs,
    }


def _entry(run: PlannedRun) -> dict[str, Any]:
    summary = run.summary()
    records = _records(run.folder.path / "metrics.jsonl")
    entry: dict[str, Any] = {
        "arm": run.arm,
        "seed": run.seed,
        "state": "finished" if summary else "unfinished" if records else "missing",
        "rollouts": summary["rollouts"] if summary else None,
        "wall_s": summary["wall_s"] if summary else None,
        "evals": _columns(records, "eval", EVAL_COLUMNS),
        "train": _columns(records, "train", TRAIN_COLUMNS),
        "degraded": None,
    }
    if summary is not None:
        base, final = (_evaluation(run, iteration) for iteration in (0, summary["iterations"]))
        if base is not None and final is not None:
            entry["prompts"] = final.ids
            entry["subjects"] = sorted(set(final.subjects))
            entry["before"], entry["after"] = _by_subject(base), _by_subject(final)
            entry["degraded"] = degraded(base, final)
    entry.setdefault("prompts", None)
    return entry


def degraded(base: HeldOutScores, final: HeldOutScores) -> bool | None:
    """Return whether a run shows competitive degradation, see `DEFINITIONS`; None without judges."""
    if not {PROXY, PROMPT} <= set(final.columns):
        return None
    return final.change(PROXY, base).low > 0 and final.change(PROMPT, base).high < 0


def _records(path: Path) -> list[Record]:
    return read_metrics(path) if path.is_file() else []


def _columns(records: Sequence[Record], kind: str, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {name: _short(record[name]) for name in names if name in record}
        for record in records
        if record["kind"] == kind
    ]


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _evaluation(run: PlannedRun, iteration: int) -> HeldOutScores | None:
    data = run.folder.read_json(f"evaluations/iteration_{iteration:06d}.json")
    return None if data is None else HeldOutScores.from_json(data)


def _by_subject(scores: HeldOutScores) -> dict[str, list[float | None]]:
    """Return the mean of every subject, in sorted order; None where nothing could be measured."""
    rows: dict[str, list[int]] = {}
    for row, subject in enumerate(scores.subjects):
        rows.setdefault(subject, []).append(row)
    return {
        metric: [
            _short(_mean([scores.columns[metric][row] for row in rows[subject]])) for subject in sorted(rows)
        ]
        for metric in METRICS
        if metric in scores.columns
    }


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if value == value]  # without NaN
    return sum(known) / len(known) if known else None


def _versions(runs: Sequence[PlannedRun]) -> Mapping[str, Any]:
    """Return the versions of the first run that has begun."""
    found = (run.folder.read_json("versions.json") for run in runs)
    return next((versions for versions in found if versions is not None), {})
