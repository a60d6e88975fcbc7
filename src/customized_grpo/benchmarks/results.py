"""The result of a benchmark: protocol, table of scores, means with intervals clustered by subject.

It is written to OUT/results.json, whole rows included, so that two results can be compared row by row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from customized_grpo.benchmarks.encoders import DERIVED, Floats
from customized_grpo.errors import UserError
from customized_grpo.statistics.intervals import FEW_CLUSTERS, clustered_bootstrap, clustered_test

FORMAT = 1


@dataclass(frozen=True)
class Table:
    """Scores of pictures, one row each.

    Attributes:
        ids: Row id and number of the picture, "dog-03/0".
        subjects: The cluster of each row.
        categories: What kind of subject.
        prompt_types: What kind of change was asked for.
        columns: Values [N] by metric; NaN where a picture could not be scored.
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
            "columns": {
                metric: [None if math.isnan(v) else v for v in values.tolist()]
                for metric, values in self.columns.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        """Read back what `to_json` returned."""
        columns = {
            metric: np.array([math.nan if v is None else v for v in values], dtype=np.float64)
            for metric, values in data["columns"].items()
        }
        return cls(data["ids"], data["subjects"], data["categories"], data["prompt_types"], columns)

    def groups(self) -> Iterator[tuple[str, str, list[int]]]:
        """Yield (split, name, row numbers): all rows, then by prompt type, then by category.

        A split into a single part says nothing new and is left out.
        """
        yield "all", "all", list(range(len(self.ids)))
        for split, names in (("prompt type", self.prompt_types), ("category", self.categories)):
            kinds = dict.fromkeys(names)
            if len(kinds) > 1:
                for kind in kinds:
                    yield split, kind, [n for n, name in enumerate(names) if name == kind]


@dataclass(frozen=True)
class Result:
    """Everything of results.json.

    Attributes:
        generator: {"name", "weights"}.
        protocol: How pictures and scores were made; see `customized_grpo.benchmarks.protocol`.
        table: The scores.
        summary: One of {"split", "name", "pictures", "subjects", "metrics"} for each part of the table;
            metrics are {"mean", "low", "high", "unscored"} by name, without ends where one subject has it.
        warnings: What a reader of the means must know.
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
    summary = [
        {
            "split": split,
            "name": name,
            "pictures": len(rows),
            "subjects": len({table.subjects[n] for n in rows}),
            "metrics": _metrics(table, rows),
        }
        for split, name, rows in table.groups()
    ]
    return Result(generator, protocol, table, summary, _warnings(table, summary))


def read_result(file: Path) -> Result:
    """Read a results.json.

    Raises:
        UserError: It cannot be read, or is of another format.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise UserError(f"{file} has format {data['format']}, this version reads {FORMAT}")
        table = Table.from_json(data["table"])
        return Result(data["generator"], data["protocol"], table, data["summary"], data["warnings"])
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not the result of a benchmark ({error!r})",
            hint="Give the results.json that `cgrpo benchmark run` wrote.",
        ) from error


def _metrics(table: Table, rows: Sequence[int]) -> dict[str, dict[str, float | int | None]]:
    subjects = [table.subjects[n] for n in rows]
    found = {metric: _interval(values[list(rows)], subjects) for metric, values in table.columns.items()}
    for derived in DERIVED:
        if all(part in table.columns for part in derived.parts):
            parts = np.stack([table.columns[part][list(rows)] for part in derived.parts])
            found[derived.metric] = _derived(parts, subjects, derived.function)
    return found


def _interval(values: Floats, subjects: Sequence[str]) -> dict[str, float | int | None]:
    scored = ~np.isnan(values)
    unscored = int((~scored).sum())
    clusters = {subject for subject, has in zip(subjects, scored, strict=True) if has}
    if len(clusters) < 2:
        mean = float(values[scored].mean()) if scored.any() else None
        return {"mean": mean, "low": None, "high": None, "unscored": unscored}
    interval = clustered_bootstrap(values, subjects, nan="omit")
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "unscored": unscored}


def _derived(parts: Floats, subjects: Sequence[str], function: Any) -> dict[str, float | int | None]:
    whole = ~np.isnan(parts.sum(0))
    unscored = int((~whole).sum())
    clusters = {subject for subject, has in zip(subjects, whole, strict=True) if has}
    if len(clusters) < 2:
        mean = float(function(parts[:, whole].mean(1, keepdims=True))[0]) if whole.any() else None
        return {"mean": mean, "low": None, "high": None, "unscored": unscored}
    interval = clustered_test(parts, subjects, function, n_boot=2000).interval
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "unscored": unscored}


def _warnings(table: Table, summary: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    few = [f"{part['name']} ({part['subjects']})" for part in summary if part["subjects"] < FEW_CLUSTERS]
    if few:
        found.append(
            f"Fewer than {FEW_CLUSTERS} subjects, so 95 % intervals are too narrow (of 4 subjects they cover "
            f"84 to 87 %): {', '.join(few)}."
        )
    for metric, values in table.columns.items():
        if count := int(np.isnan(values).sum()):
            found.append(f"{metric}: {count} of {len(values)} pictures could not be scored and do not count.")
    return found
