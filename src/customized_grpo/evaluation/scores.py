"""The scores of one held-out evaluation: a table with a row per image, its means, intervals and changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.files import read_json
from customized_grpo.statistics.intervals import Interval, clustered_bootstrap, paired_difference

if TYPE_CHECKING:
    from customized_grpo.data.examples import Example

MIN_CLUSTERS = 2
"""Fewest subjects that intervals can be given for."""

DIVERSITY = "monitor/diversity"
"""Column of how much the images of a prompt differ; it needs two samples of each prompt."""


@dataclass(frozen=True)
class HeldOutScores:
    """The scores of one evaluation.

    Attributes:
        columns: Values by metric name, one per image; NaN where there is none.
        ids: Prompt and sample of each image, so that two evaluations can be paired.
        subjects: The cluster of each image.
    """

    columns: dict[str, list[float]]
    ids: list[str]
    subjects: list[str]

    @classmethod
    def from_columns(
        cls, columns: dict[str, list[float]], examples: Sequence[Example], samples_per_prompt: int
    ) -> HeldOutScores:
        """Return the table of columns whose rows are the samples of the examples, those of one in a row."""
        ids: list[str] = []
        subjects: list[str] = []
        for example in examples:
            ids += [f"{example.id}/{number}" for number in range(samples_per_prompt)]
            subjects += [example.subject] * samples_per_prompt
        return cls(columns, ids, subjects)

    def of_all_processes(
        self,
        gather: Callable[[Tensor], Tensor],
        examples: Sequence[Example],
        samples_per_prompt: int,
    ) -> HeldOutScores:
        """Return the table of all processes, given that of one.

        Args:
            gather: Joins the tensors of all processes along dimension 0.
            examples: Those of all processes; rows after theirs only fill up the last processes' blocks.
            samples_per_prompt: Images of each example.
        """
        # rows first, because gathering joins dimension 0; float64 holds every score exactly
        rows = torch.tensor(list(self.columns.values()), dtype=torch.float64).T
        columns = gather(rows)[: len(examples) * samples_per_prompt].T.tolist()  # without the padding
        named = dict(zip(self.columns, columns, strict=True))
        return HeldOutScores.from_columns(named, examples, samples_per_prompt)

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON (NaN becomes null)."""
        columns = {}
        for name, values in self.columns.items():
            columns[name] = [None if math.isnan(value) else value for value in values]
        return {"ids": self.ids, "subjects": self.subjects, "columns": columns}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> HeldOutScores:
        """Read back what `to_json` returned."""
        columns = {}
        for name, values in data["columns"].items():
            columns[name] = [math.nan if value is None else value for value in values]
        return cls(columns, data["ids"], data["subjects"])

    def is_measured(self, metric: str, base: HeldOutScores) -> bool:
        """Return whether enough subjects have the metric, here and in the base, for intervals."""
        pairs = zip(self.columns[metric], base.columns[metric], self.subjects, strict=True)
        # a sum with a NaN is NaN
        scored = {subject for now, before, subject in pairs if not math.isnan(now + before)}
        return len(scored) >= MIN_CLUSTERS

    def interval(self, metric: str) -> Interval:
        """Return the mean of a metric with its 95 % interval, clustered by subject."""
        return clustered_bootstrap(self.columns[metric], self.subjects, nan="omit")

    def change(self, metric: str, base: HeldOutScores) -> Interval:
        """Return the paired change of a metric against the base, clustered by subject."""
        if base.ids != self.ids:
            raise ValueError("the two evaluations are not of the same prompts and samples")
        return paired_difference(self.columns[metric], base.columns[metric], self.subjects, nan="omit")

    def mean(self, metric: str) -> float:
        """Return the mean of a metric over the images that have it; NaN if none has."""
        scored = [value for value in self.columns[metric] if not math.isnan(value)]
        return sum(scored) / len(scored) if scored else math.nan

    def metrics(self) -> dict[str, float]:
        """Return the means for one line of metrics.jsonl, with intervals of the two judges."""
        line = {name: self.mean(name) for name in self.columns}
        for name in ("judge/identity", "judge/prompt"):
            # Against itself: are there enough subjects for an interval?
            if name in self.columns and self.is_measured(name, self):
                interval = self.interval(name)
                line |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        return line


def read_scores(file: Path) -> HeldOutScores:
    """Return the scores of an evaluation from the file that holds `HeldOutScores.to_json`.

    Raises:
        UserError: It is missing or damaged.
    """
    table = read_json(file)
    try:
        scores = HeldOutScores.from_json(table)
        lengths = {len(scores.ids), len(scores.subjects), *map(len, scores.columns.values())}
        sum(math.fsum(values) for values in scores.columns.values())  # numbers, all of them
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged: {error!r}") from error
    if len(lengths) != 1:
        raise UserError(f"{file} is damaged: its columns have different lengths")
    return scores


def summary(base: HeldOutScores, tuned: HeldOutScores) -> dict[str, dict[str, dict[str, float]]]:
    """Return base, tuned and paired difference of every metric with 95 % intervals clustered by subject.

    A metric that fewer than two subjects have is left out.
    """

    def bounds(interval: Interval) -> dict[str, float]:
        return {"mean": interval.mean, "low": interval.low, "high": interval.high}

    measured = [metric for metric in tuned.columns if tuned.is_measured(metric, base)]
    return {
        "base": {metric: bounds(base.interval(metric)) for metric in measured},
        "tuned": {metric: bounds(tuned.interval(metric)) for metric in measured},
        "difference": {metric: bounds(tuned.change(metric, base)) for metric in measured},
    }
