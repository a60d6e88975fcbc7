"""The result of a benchmark: protocol, table of scores, means with intervals clustered by subject.

It is written to OUT/results.json, whole rows included, so that two results can be compared row by row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from customized_grpo.benchmarks.encoders import DERIVED, Floats
from customized_grpo.errors import UserError
from customized_grpo.statistics.intervals import FEW_CLUSTERS, clustered_bootstrap, clustered_test

FORMAT = 2
"""Format of results.json that this version writes and reads."""


@dataclass(frozen=True)
class Table:
    """Scores of images, one row each.

    Attributes:
        ids: Row id and number of the image, "dog-03/0".
        subjects: The subject of each row, the cluster of all intervals.
        categories: Kind of each subject.
        prompt_types: Kind of change that each prompt asks for.
        columns: Values [N] by metric; NaN where an image could not be scored.
    """

    ids: list[str]
    subjects: list[str]
    categories: list[str]
    prompt_types: list[str]
    columns: Mapping[str, Floats]

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON; NaN becomes null."""
        return {
            "ids": self.ids,
            "subjects": self.subjects,
            "categories": self.categories,
            "prompt_types": self.prompt_types,
            "columns": {metric: _with_nulls(values) for metric, values in self.columns.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        """Read back what `to_json` returned."""
        columns = {metric: _without_nulls(values) for metric, values in data["columns"].items()}
        return cls(data["ids"], data["subjects"], data["categories"], data["prompt_types"], columns)

    def groups(self) -> Iterator[Group]:
        """Yield all rows, then the rows of each prompt type, then those of each category.

        A split into a single part says nothing new and is left out.
        """
        yield Group("all", "all", list(range(len(self.ids))))
        for split, names in (("prompt type", self.prompt_types), ("category", self.categories)):
            # in the order of the benchmark, which a set would lose
            kinds = list(dict.fromkeys(names))
            if len(kinds) == 1:
                continue
            for kind in kinds:
                yield Group(split, kind, [row for row, name in enumerate(names) if name == kind])


@dataclass(frozen=True)
class Group:
    """Some rows of a table.

    Attributes:
        split: "all", "prompt type" or "category".
        name: The prompt type or category.
        rows: Row numbers.
    """

    split: str
    name: str
    rows: list[int]


def _with_nulls(values: Floats) -> list[float | None]:
    # NaN is not JSON, and other readers would refuse the file
    return [None if math.isnan(value) else value for value in values.tolist()]


def _without_nulls(values: Sequence[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


@dataclass(frozen=True)
class Result:
    """Everything of results.json.

    Attributes:
        generator: {"name", "weights"}.
        protocol: How images and scores were made; see `customized_grpo.benchmarks.protocol`.
        table: The scores.
        summary: One of {"split", "name", "images", "subjects", "metrics"} for each part of the table;
            metrics are {"mean", "low", "high", "unscored"} by name, without ends where one subject has it.
        warnings: Sentences that a reader of the means needs.
    """

    generator: Mapping[str, str]
    protocol: Mapping[str, Any]
    table: Table
    summary: Sequence[Mapping[str, Any]]
    warnings: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return the whole as JSON."""
        return {
            "format": FORMAT,
            "generator": dict(self.generator),
            "protocol": dict(self.protocol),
            "summary": list(self.summary),
            "warnings": list(self.warnings),
            "table": self.table.to_json(),
        }


def make_result(generator: Mapping[str, str], protocol: Mapping[str, Any], table: Table) -> Result:
    """Return the result of a table of scores."""
    summary = [_summarise(table, group) for group in table.groups()]
    return Result(generator, protocol, table, summary, _warnings(table, summary))


def _summarise(table: Table, group: Group) -> dict[str, Any]:
    return {
        "split": group.split,
        "name": group.name,
        "images": len(group.rows),
        "subjects": len({table.subjects[row] for row in group.rows}),
        "metrics": _metrics(table, group.rows),
    }


def read_result(file: Path) -> Result:
    """Read a results.json.

    Raises:
        UserError: It cannot be read, or is of another format.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        # before anything else is read, which another format may not have
        if data["format"] != FORMAT:
            raise UserError(
                f"{file} has format {data['format']}, this version reads {FORMAT}",
                hint="Run the benchmark again with this version, into another --out.",
            )
        table = Table.from_json(data["table"])
        return Result(data["generator"], data["protocol"], table, data["summary"], data["warnings"])
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not the result of a benchmark ({error!r})",
            hint="Give the results.json that `cgrpo benchmark run` wrote.",
        ) from error


def count_clusters(subjects: Sequence[str], scored: NDArray[np.bool_]) -> int:
    """Return how many subjects have a scored row."""
    return len({subject for subject, has_score in zip(subjects, scored, strict=True) if has_score})


def _metrics(table: Table, rows: Sequence[int]) -> dict[str, dict[str, float | int | None]]:
    """Return the mean of every metric over some rows, also of those computed from others."""
    subjects = [table.subjects[row] for row in rows]
    metrics = {metric: _interval(values[list(rows)], subjects) for metric, values in table.columns.items()}
    for derived in DERIVED:
        if all(part in table.columns for part in derived.parts):
            parts = np.stack([table.columns[part][list(rows)] for part in derived.parts])
            metrics[derived.metric] = _derived(parts, subjects, derived.function)
    return metrics


def _interval(values: Floats, subjects: Sequence[str]) -> dict[str, float | int | None]:
    """Return the mean of values [N] with its interval; no ends with fewer than two subjects."""
    scored = ~np.isnan(values)
    if count_clusters(subjects, scored) < 2:
        mean = float(values[scored].mean()) if scored.any() else None
        return _entry(mean, None, None, scored)
    interval = clustered_bootstrap(values, subjects, nan="omit")
    return _entry(interval.mean, interval.low, interval.high, scored)


def _derived(
    parts: Floats, subjects: Sequence[str], function: Callable[[Floats], Floats]
) -> dict[str, float | int | None]:
    """Return a function of the means of parts [K, N] with its interval, as `_interval` does."""
    # a sum with a NaN is NaN, so these are the images that have all parts
    scored = ~np.isnan(parts.sum(0))
    if count_clusters(subjects, scored) < 2:
        means = parts[:, scored].mean(1, keepdims=True) if scored.any() else None
        mean = float(function(means)[0]) if means is not None else None
        return _entry(mean, None, None, scored)
    # as many draws as `clustered_bootstrap` makes for the metrics beside it; no p-value is needed
    interval = clustered_test(parts, subjects, function, n_boot=2000).interval
    return _entry(interval.mean, interval.low, interval.high, scored)


def _entry(
    mean: float | None, low: float | None, high: float | None, scored: NDArray[np.bool_]
) -> dict[str, float | int | None]:
    return {"mean": mean, "low": low, "high": high, "unscored": int((~scored).sum())}


def _warnings(table: Table, summary: Sequence[Mapping[str, Any]]) -> list[str]:
    warnings = []
    few = [f"{part['name']} ({part['subjects']})" for part in summary if part["subjects"] < FEW_CLUSTERS]
    if few:
        warnings.append(
            f"Fewer than {FEW_CLUSTERS} subjects, so 95 % intervals are too narrow (of 4 subjects they cover "
            f"84 to 87 %): {', '.join(few)}."
        )
    for metric, values in table.columns.items():
        count = int(np.isnan(values).sum())
        if count:
            warnings.append(
                f"{metric}: {count} of {len(values)} images could not be scored and do not count."
            )
    return warnings
