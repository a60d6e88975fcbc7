"""The results of a plan's runs as plain data: `results.json` without its analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from customized_grpo.comparison.definitions import METRICS
from customized_grpo.comparison.joined import Joined, unique_runs
from customized_grpo.comparison.plan import Plan, PlannedRun, union_of_arms
from customized_grpo.errors import UserError
from customized_grpo.evaluation.scores import MIN_CLUSTERS, HeldOutScores, read_scores
from customized_grpo.reporting.metrics import Record, read_metrics
from customized_grpo.statistics import degradation

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
BASE_MOVED = 0.2
"""Change of the base's mean, in standard deviations over subjects, from which it is another base."""

ROUNDED = 1e-3
"""The same where subjects hardly differ, in units of the metric."""

DIGITS = 6
"""Significant digits of every number: far below any interval, and the file stays small."""


def collect(plan: Plan, joined: Joined) -> dict[str, Any]:
    """Return the plan and one entry per run, with the arms, seeds and runs of joined results.

    A finished run has its curves and `subjects`, the mean of every subject before and after training
    ([C] for each metric), which all statistics are made of. A run in which hardly any subject was measured
    has `left_out`, why it has none of these.

    Raises:
        UserError: Finished runs were judged on different prompts or subjects, or by different metrics, or a
            run is there twice with different scores.
    """
    runs = [_entry(run) for run in plan.runs()]
    # Before joined runs come in, which hold subjects but no prompts.
    _check_prompts([run for run in runs if run["state"] == "finished"])
    for run in runs:
        del run["prompts"]
    runs = unique_runs([*runs, *joined.runs])
    judged = [run for run in runs if "subjects" in run]
    _check_judged_alike(judged)
    _check_one_base(judged)
    arms = union_of_arms(plan.arms, joined.arms)
    return {
        "format": 1,
        **plan.to_json(),
        "arms": [arm.model_dump(mode="json") for arm in arms],
        "seeds": sorted({run["seed"] for run in runs}),
        "versions": _versions(plan.runs()),
        "joined": joined.sources,
        "runs": runs,
    }


def _check_prompts(finished: Sequence[Mapping[str, Any]]) -> None:
    """Refuse finished runs that were judged on different prompts."""
    for run in finished:
        first = finished[0]
        if run["prompts"] != first["prompts"]:
            raise UserError(
                f"{run['arm']} (seed {run['seed']}) and {first['arm']} were judged on different held-out "
                "prompts, so they cannot be paired",
                hint="Files of a run were changed. Remove its folder, then call the same command again.",
            )


def _check_judged_alike(judged: Sequence[Mapping[str, Any]]) -> None:
    """Refuse runs that were judged on different subjects, or by different metrics.

    Joined ones do not say their prompts.
    """
    for run in judged:
        first = judged[0]
        different = []
        if run["subjects"] != first["subjects"]:
            different.append("on different held-out subjects")
        if run["after"].keys() != first["after"].keys():
            different.append("by different metrics")
        if different:
            raise UserError(
                f"{run['arm']} (seed {run['seed']}) and {first['arm']} (seed {first['seed']}) were judged "
                f"{' and '.join(different)}, so they cannot be paired",
                hint="Leave out --also, or join results of a recipe with the same data and judges.",
            )


def _check_one_base(judged: Sequence[Mapping[str, Any]]) -> None:
    """Refuse runs that did not start from one base: figures take the scores before training for the same.

    Other machines round otherwise, which moves means by far less than subjects differ.
    """
    for run in judged:
        first = judged[0]
        for metric, before in first["before"].items():
            pairs = zip(before, run["before"][metric], strict=True)
            both = np.array([pair for pair in pairs if None not in pair], dtype=np.float64).reshape(-1, 2)
            moved = float(abs(both[:, 1].mean() - both[:, 0].mean())) if len(both) else 0.0
            if moved > BASE_MOVED * float(both[:, 0].std()) + ROUNDED:
                means = " and ".join(f"{mean:.3f}" for mean in both.mean(axis=0))
                raise UserError(
                    f"{first['arm']} (seed {first['seed']}) and {run['arm']} (seed {run['seed']}) have other "
                    f"scores before training ({metric}: {means}), so they did not start from one base",
                    hint="Compare runs of the same weights, data and version; leave out --also.",
                )


def _entry(run: PlannedRun) -> dict[str, Any]:
    """Return the entry of a run; its "prompts" are only there to be compared and then removed."""
    summary = run.summary()
    records = _records(run.folder.path / "metrics.jsonl")
    entry: dict[str, Any] = {
        "arm": run.arm,
        "seed": run.seed,
        "state": _state(summary, records),
        "rollouts": summary["rollouts"] if summary else None,
        "wall_s": summary["wall_s"] if summary else None,
        "evals": _columns(records, "eval", EVAL_COLUMNS),
        "train": _columns(records, "train", TRAIN_COLUMNS),
        "alarms": _standing_alarms(records),
        "degraded": None,
        "prompts": None,
    }
    if summary is None:
        return entry
    # Every run judges the base itself: its first evaluation, before the first update.
    base = _evaluation(run, 0)
    final = _evaluation(run, summary["iterations"])
    if base is not None and final is not None:
        entry["prompts"] = final.ids
        unmeasured = [
            metric for metric in METRICS if metric in final.columns and not final.is_measured(metric, base)
        ]
        if unmeasured:
            names = " and ".join(unmeasured)
            entry["left_out"] = f"fewer than {MIN_CLUSTERS} subjects have a score of {names} before and after"
            return entry
        entry["subjects"] = sorted(set(final.subjects))
        entry["before"] = _by_subject(base)
        entry["after"] = _by_subject(final)
        entry["degraded"] = degraded(base, final)
    return entry


def _standing_alarms(records: Sequence[Record]) -> list[str]:
    """Return the names of the alarms that the latest evaluation raised."""
    # An alarm counts if the last evaluation raised it; earlier ones may have passed.
    latest = max((int(record["iteration"] or 0) for record in records if record["kind"] == "eval"), default=0)
    names = []
    for record in records:
        if record.get("event") == "alarm" and record["iteration"] == latest:
            names.append(str(record.get("alarm", "")))
    return names


def _state(summary: object, records: Sequence[Record]) -> str:
    if summary is not None:
        return "finished"
    return "unfinished" if records else "missing"


def degraded(base: HeldOutScores, final: HeldOutScores) -> bool | None:
    """Return whether a run shows competitive degradation, see `DEFINITIONS`; None where it was not judged."""
    metrics = (degradation.REWARD, degradation.JUDGE)
    if not all(metric in final.columns and final.is_measured(metric, base) for metric in metrics):
        return None
    reward = final.change(degradation.REWARD, base)
    judge = final.change(degradation.JUDGE, base)
    return degradation.is_degraded(reward.low, judge.high)


def _records(path: Path) -> list[Record]:
    return read_metrics(path) if path.is_file() else []


def _columns(records: Sequence[Record], kind: str, names: Sequence[str]) -> list[dict[str, Any]]:
    columns = []
    for record in records:
        if record["kind"] == kind:
            columns.append({name: _short(record[name]) for name in names if name in record})
    return columns


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _evaluation(run: PlannedRun, iteration: int) -> HeldOutScores | None:
    # Six digits, as the run writes its evaluations.
    file = run.folder.path / f"evaluations/iteration_{iteration:06d}.json"
    return read_scores(file) if file.is_file() else None


def _by_subject(scores: HeldOutScores) -> dict[str, list[float | None]]:
    """Return the mean of every subject, in sorted order; None where nothing could be measured."""
    means: dict[str, list[float | None]] = {}
    for metric in METRICS:
        if metric in scores.columns:
            means[metric] = _subject_means(scores.columns[metric], scores.subjects)
    return means


def _subject_means(values: Sequence[float], subjects: Sequence[str]) -> list[float | None]:
    """Return one mean per subject, subjects sorted, of a value per sample."""
    by_subject: dict[str, list[float]] = {}
    for value, subject in zip(values, subjects, strict=True):
        by_subject.setdefault(subject, []).append(value)
    # sample -> subject: the column of every table from here on
    return [_short(_mean(by_subject[subject])) for subject in sorted(by_subject)]


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean without NaN; None when nothing is left."""
    measured = [value for value in values if not math.isnan(value)]
    return sum(measured) / len(measured) if measured else None


def _versions(runs: Sequence[PlannedRun]) -> Mapping[str, Any]:
    """Return the versions of the first run that has begun."""
    for run in runs:
        versions: dict[str, Any] | None = run.folder.read_json("versions.json")
        if versions is not None:
            return versions
    return {}
