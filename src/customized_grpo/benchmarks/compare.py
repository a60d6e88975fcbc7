"""Two results of one protocol, subtracted row by row: same prompts, same noise, clustered by subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from customized_grpo.benchmarks.encoders import DERIVED, Floats
from customized_grpo.benchmarks.protocol import check_across, check_comparable
from customized_grpo.benchmarks.results import Result, Table, count_clusters
from customized_grpo.errors import UserError
from customized_grpo.statistics.crossed import holm
from customized_grpo.statistics.intervals import FEW_CLUSTERS, Test, clustered_test


@dataclass(frozen=True)
class MetricDifference:
    """The difference of two results in one metric.

    Attributes:
        metric: Its name.
        before: Value of the first result, over the common rows.
        after: Value of the second result.
        test: The difference after - before.
        p_holm: Its p-value corrected for the number of metrics.
    """

    metric: str
    before: float
    after: float
    test: Test
    p_holm: float

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        interval = self.test.interval
        return {
            "metric": self.metric,
            "before": self.before,
            "after": self.after,
            "difference": {"mean": interval.mean, "low": interval.low, "high": interval.high},
            "p": self.test.p,
            "p_holm": self.p_holm,
            "images": interval.rows,
            "subjects": interval.clusters,
        }


@dataclass(frozen=True)
class PairedResult:
    """Two results, subtracted row by row.

    Attributes:
        before: Name of the first generator.
        after: Name of the second.
        differences: One for each metric that both have.
        warnings: Sentences that a reader of the numbers needs.
    """

    before: str
    after: str
    differences: Sequence[MetricDifference]
    warnings: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "before": self.before,
            "after": self.after,
            "differences": [difference.to_json() for difference in self.differences],
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class _CommonRows:
    """The rows that two results share.

    Attributes:
        before: Row numbers in the first result [N].
        after: Row numbers in the second result [N].
        subjects: The cluster of each row [N].
    """

    before: list[int]
    after: list[int]
    subjects: list[str]

    @classmethod
    def from_tables(cls, before: Table, after: Table) -> _CommonRows:
        """Return the rows that are in both tables, in the order of the second."""
        number_of = {row: number for number, row in enumerate(before.ids)}
        numbers = [number for number, row in enumerate(after.ids) if row in number_of]
        return cls(
            # from a place in the second table, by the row's id, to its place in the first
            before=[number_of[after.ids[number]] for number in numbers],
            after=numbers,
            subjects=[after.subjects[number] for number in numbers],
        )


def compare_results(before: Result, after: Result, across: Sequence[str] = ()) -> PairedResult:
    """Compare two results on the rows they have in common.

    Args:
        before: The one to improve on.
        after: The other.
        across: Protocol fields in which they may differ; see `check_comparable`.

    Raises:
        UserError: The protocols differ, or fewer than two subjects are common.
    """
    check_across(across)
    check_comparable(before.protocol, after.protocol, across)
    rows = _CommonRows.from_tables(before.table, after.table)
    subjects = len(set(rows.subjects))
    # the intervals are over subjects, and one has no spread
    if subjects < 2:
        raise UserError(
            f"the two results have {len(rows.after)} images of {subjects} subjects in common; "
            "a comparison needs two subjects at least",
            hint="Evaluate both on the same rows: the same --subject, --limit and --samples.",
        )
    differences = _differences(before.table, after.table, rows)
    return PairedResult(
        before.generator["name"], after.generator["name"], differences, _warnings(before, after, rows)
    )


def _differences(before: Table, after: Table, rows: _CommonRows) -> list[MetricDifference]:
    """Return the difference in every metric that both have, also in those computed from others."""
    metrics = [metric for metric in before.columns if metric in after.columns]
    raw: list[MetricDifference] = []
    for metric in metrics:
        pair = _pair(before, after, metric, rows)
        raw += _test(metric, pair, rows.subjects, lambda means: means[0])
    for derived in DERIVED:
        if set(derived.parts) <= set(metrics):
            pairs = np.concatenate([_pair(before, after, part, rows) for part in derived.parts])
            raw += _test(derived.metric, pairs, rows.subjects, derived.function)
    # over all metrics: each of them is one more chance of a lucky difference
    corrected = holm([difference.test.p for difference in raw])
    return [replace(difference, p_holm=p) for difference, p in zip(raw, corrected, strict=True)]


def _pair(before: Table, after: Table, metric: str, rows: _CommonRows) -> Floats:
    """Return the metric of both results on the common rows [2, N]."""
    return np.stack([before.columns[metric][rows.before], after.columns[metric][rows.after]])


def _test(
    metric: str, pairs: Floats, subjects: Sequence[str], function: Callable[[Floats], Floats]
) -> list[MetricDifference]:
    """Return the difference in one metric, p not yet corrected; nothing if fewer than two subjects have it.

    Args:
        metric: Its name.
        pairs: [2 K, N]: before and after of each of K parts in turn.
        subjects: [N].
        function: Maps means of the K parts [K, draws] to the metric.
    """
    # a sum with a NaN is NaN, so these are the rows that both results could score in all parts
    scored = ~np.isnan(pairs.sum(0))
    if count_clusters(subjects, scored) < 2:
        return []
    # Even rows are before, odd rows after.
    test = clustered_test(pairs, subjects, lambda means: function(means[1::2]) - function(means[::2]))
    means = pairs[:, scored].mean(1, keepdims=True)
    before = float(function(means[::2])[0])
    after = float(function(means[1::2])[0])
    return [MetricDifference(metric, before, after, test, test.p)]


def _warnings(before: Result, after: Result, rows: _CommonRows) -> list[str]:
    warnings = []
    subjects = len(set(rows.subjects))
    if subjects < FEW_CLUSTERS:
        warnings.append(
            f"Only {subjects} subjects in common: with fewer than {FEW_CLUSTERS} the intervals are "
            "too narrow."
        )
    longest = max(len(before.table.ids), len(after.table.ids))
    if len(rows.after) < longest:
        warnings.append(
            f"Only {len(rows.after)} of {longest} images are in both results; the others do not count."
        )
    if before.generator["weights"] == after.generator["weights"]:
        warnings.append("Both results are of the same weights.")
    return warnings
