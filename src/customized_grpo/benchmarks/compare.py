"""Two results of one protocol, subtracted row by row: same prompts, same noise, clustered by subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from customized_grpo.benchmarks.encoders import DERIVED, Floats
from customized_grpo.benchmarks.protocol import check_across, check_comparable
from customized_grpo.benchmarks.results import Result
from customized_grpo.errors import UserError
from customized_grpo.statistics.crossed import holm
from customized_grpo.statistics.intervals import FEW_CLUSTERS, Test, clustered_test


@dataclass(frozen=True)
class Difference:
    """One metric of the two results.

    Attributes:
        metric: Its name.
        before: Of the first result, over the common rows.
        after: Of the second.
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
            "pictures": interval.rows,
            "subjects": interval.clusters,
        }


@dataclass(frozen=True)
class Comparison:
    """What the second result has over the first.

    Attributes:
        before: Name of the first generator.
        after: Name of the second.
        differences: One of each metric that both have.
        warnings: What a reader must know.
    """

    before: str
    after: str
    differences: Sequence[Difference]
    warnings: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "before": self.before,
            "after": self.after,
            "differences": [difference.to_json() for difference in self.differences],
            "warnings": list(self.warnings),
        }


def compare(before: Result, after: Result, across: Sequence[str] = ()) -> Comparison:
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
    places = {row: number for number, row in enumerate(before.table.ids)}
    common = [(places[row], number) for number, row in enumerate(after.table.ids) if row in places]
    subjects = [after.table.subjects[number] for _, number in common]
    if len(set(subjects)) < 2:
        raise UserError(
            f"the two results have {len(common)} pictures of {len(set(subjects))} subjects in common; "
            "a comparison needs two subjects at least",
            "Evaluate both on the same rows: the same --subjects, --limit and --samples.",
        )
    metrics = [metric for metric in before.table.columns if metric in after.table.columns]
    tested: list[tuple[str, float, float, Test]] = []
    for metric in metrics:
        pair = _pair(before, after, metric, common)
        tested += _test(metric, pair, subjects, lambda means: means[0])
    for derived in DERIVED:
        if set(derived.parts) <= set(metrics):
            pair = np.concatenate([_pair(before, after, part, common) for part in derived.parts])
            tested += _test(derived.metric, pair, subjects, derived.function)
    corrected = holm([test.p for *_, test in tested])
    differences = [Difference(*entry, p) for entry, p in zip(tested, corrected, strict=True)]
    names = before.generator["name"], after.generator["name"]
    return Comparison(*names, differences, _warnings(before, after, common, subjects))


def _pair(before: Result, after: Result, metric: str, common: Sequence[tuple[int, int]]) -> Floats:
    """Return the metric of both results [2, rows]."""
    first, second = (list(numbers) for numbers in zip(*common, strict=True))
    return np.stack([before.table.columns[metric][first], after.table.columns[metric][second]])


def _test(
    metric: str, pairs: Floats, subjects: Sequence[str], function: Callable[[Floats], Floats]
) -> list[tuple[str, float, float, Test]]:
    """Return the test of one metric, nothing if fewer than two subjects have it.

    Args:
        metric: Its name.
        pairs: [2 K, N]: before and after of each of K parts in turn.
        subjects: [N].
        function: Maps means of the K parts [K, draws] to the metric.
    """
    whole = ~np.isnan(pairs.sum(0))
    if len({subject for subject, has in zip(subjects, whole, strict=True) if has}) < 2:
        return []
    means = pairs[:, whole].mean(1, keepdims=True)
    test = clustered_test(pairs, subjects, lambda means: function(means[1::2]) - function(means[::2]))
    return [(metric, float(function(means[::2])[0]), float(function(means[1::2])[0]), test)]


def _warnings(
    before: Result, after: Result, common: Sequence[tuple[int, int]], subjects: Sequence[str]
) -> list[str]:
    found = []
    if len(set(subjects)) < FEW_CLUSTERS:
        found.append(
            f"Only {len(set(subjects))} subjects in common: with fewer than {FEW_CLUSTERS} the intervals are "
            "too narrow."
        )
    longest = max(len(before.table.ids), len(after.table.ids))
    if len(common) < longest:
        found.append(
            f"Only {len(common)} of {longest} pictures are in both results; the others do not count."
        )
    if before.generator["weights"] == after.generator["weights"]:
        found.append("Both results are of the same weights.")
    return found
