"""Existing runs, compared: intervals, paired differences, and the settings that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from customized_grpo.comparison.definitions import IDENTITY, METRICS, PROMPT
from customized_grpo.comparison.existing import (
    JUDGE,
    MODEL_CONTENT,
    REWARD,
    JudgedRun,
    comparable_metrics,
    differs,
    drawn_with,
    same_base,
)
from customized_grpo.comparison.results import degraded
from customized_grpo.flat import flat
from customized_grpo.pages.findings import alarms
from customized_grpo.statistics.crossed import holm
from customized_grpo.statistics.intervals import FEW_CLUSTERS, Floats, Interval, clustered_test

KIND = "runs"
"""What results.json is of, where a comparison that trains has arms."""

TESTED = (IDENTITY, PROMPT, f"{JUDGE}quality")
"""Measures that the verdict is about, and that p-values are corrected for."""

REWARDS_TESTED = (f"{REWARD}identity", f"{REWARD}prompt", f"{REWARD}quality")
"""The same where no judge measured anything."""

SHOWN = (*dict.fromkeys((*TESTED, *REWARDS_TESTED, *METRICS)),)
"""Measures of the tables, in the order people read them."""


def compare(runs: Sequence[JudgedRun]) -> dict[str, Any]:
    """Return the results of a comparison of runs that are there already.

    Args:
        runs: Of `existing.read_runs`; the first is the one that the others are compared with.

    Returns:
        `runs`, an entry each with `before`, `after` and `change` by measure; `pairs`, the first against each
        other run; `settings` that differ; `notes` on what limits all this. Intervals are of 95 %, clustered
        by subject. Differences of two runs are paired by prompt and sample, and p-values are Holm's over all
        pairs and the measures of the verdict.
    """
    measured = comparable_metrics(runs)
    tested = [metric for metric in TESTED if metric in measured] or [
        metric for metric in REWARDS_TESTED if metric in measured
    ]
    metrics = [metric for metric in SHOWN if metric in measured]
    pairs = [_pair(runs[0], other, metrics) for other in runs[1:]]
    _correct(pairs, tested)
    return {
        "format": 1,
        "kind": KIND,
        "tested": tested,
        "runs": [_entry(run, metrics) for run in runs],
        "pairs": pairs,
        "settings": _settings(runs),
        "notes": _notes(runs, tested),
    }


def _entry(run: JudgedRun, metrics: Sequence[str]) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": str(run.folder),
        "state": "finished" if run.is_finished else "unfinished",
        "iteration": run.iteration,
        "iterations": run.data.setting("train.iterations"),
        "rollouts": run.data.last.get("rollouts"),
        "seed": run.data.setting("run.seed"),
        "images": len(run.final.ids),
        "subjects": len(set(run.final.subjects)),
        "alarms": list(alarms(run.data).standing),
        "degraded": degraded(run.base, run.final),
        "before": {metric: _bounds(run.base.interval(metric)) for metric in metrics},
        "after": {metric: _bounds(run.final.interval(metric)) for metric in metrics},
        "change": {metric: _bounds(run.final.change(metric, run.base)) for metric in metrics},
        "versions": dict(run.data.versions),
    }


def _pair(first: JudgedRun, other: JudgedRun, metrics: Sequence[str]) -> dict[str, Any]:
    """Return the differences other - first after training, of the images that both have a score of."""
    differences = {}
    for metric in metrics:
        columns = np.array([first.final.columns[metric], other.final.columns[metric]], dtype=np.float64)
        subjects = first.final.subjects
        scored = ~np.isnan(columns.sum(0))
        if len({subject for subject, known in zip(subjects, scored, strict=True) if known}) < 2:
            continue  # each run has two subjects with scores, but not the same
        test = clustered_test(columns, subjects, _difference)
        entry: dict[str, Any] = {**_bounds(test.interval), "p": test.p, "p_holm": None}
        differences[metric] = {**entry, "images": test.interval.rows, "subjects": test.interval.clusters}
    return {"first": first.name, "other": other.name, "difference": differences}


def _difference(means: Floats) -> Floats:
    """Return the difference [draws] of the means [2, draws]."""
    difference: Floats = means[1] - means[0]
    return difference


def _correct(pairs: Sequence[Mapping[str, Any]], tested: Sequence[str]) -> None:
    """Write Holm's p-values over all pairs and tested measures into their entries."""
    tests = []
    for pair in pairs:
        tests += [pair["difference"][metric] for metric in tested if metric in pair["difference"]]
    for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p


def _bounds(interval: Interval) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _settings(runs: Sequence[JudgedRun]) -> list[dict[str, Any]]:
    """Return the settings that are not the same in all runs, but for their folders; None is absent."""
    recipes = [flat(run.data.config) for run in runs]
    keys: dict[str, None] = {}
    for recipe in recipes:
        keys |= dict.fromkeys(recipe)
    settings = []
    for key in keys:
        values = [recipe.get(key) for recipe in recipes]
        if key != "run.dir" and any(value != values[0] for value in values):
            settings.append({"key": key, "values": values})
    return settings


def _notes(runs: Sequence[JudgedRun], tested: Sequence[str]) -> list[str]:
    """Return what a reader of the numbers needs to know."""
    notes = ["Each is one run: the intervals are about new subjects. Another seed may end elsewhere."]
    unfinished = [f"{run.name} after iteration {run.iteration}" for run in runs if not run.is_finished]
    if unfinished:
        notes.append(f"Not finished: {', '.join(unfinished)}.")
    if len({run.iteration for run in runs}) > 1:
        lengths = ", ".join(f"{run.name} {run.iteration}" for run in runs)
        notes.append(f"They were trained for different numbers of iterations: {lengths}.")
    notes += _drawn_otherwise(runs)
    if any(differs(runs[0], run, MODEL_CONTENT) for run in runs):
        notes.append("They began from other models, so a difference is not only what training did.")
    elif not same_base(runs):
        notes.append(
            "Their scores before training are not equal (another noise, machine or version): only prompts "
            "and subjects pair them."
        )
    if not tested[0].startswith(JUDGE):
        notes.append("No held-out judge measured them: the rewards stand in, which training maximised.")
    subjects = len(set(runs[0].final.subjects))
    if subjects < FEW_CLUSTERS:
        notes.append(
            f"Only {subjects} subjects are held out: with fewer than {FEW_CLUSTERS} intervals are too narrow."
        )
    return notes


def _drawn_otherwise(runs: Sequence[JudgedRun]) -> list[str]:
    """Return a sentence for each setting of the held-out images that is not the same in all runs."""
    settings = [drawn_with(run) for run in runs]
    notes = []
    for name in settings[0]:
        values = [str(one[name]) for one in settings]
        if len(set(values)) > 1:
            notes.append(
                f"Their held-out images were drawn with other {name} ({', '.join(values)}), so a difference "
                "is not only what training did."
            )
    return notes
