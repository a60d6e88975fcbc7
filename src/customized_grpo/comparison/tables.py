"""The finished runs of a comparison as tables of seeds x subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from customized_grpo.evaluation.scores import MIN_CLUSTERS

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ArmScores:
    """Scores of the finished runs of one arm.

    Attributes:
        seeds: The seed of each row of the tables.
        after: Scores after training [S, C] by metric, S seeds and C subjects; NaN where not measured.
        change: The same minus the base's.
    """

    seeds: list[int]
    after: dict[str, Floats]
    change: dict[str, Floats]

    @classmethod
    def from_runs(cls, runs: Sequence[Mapping[str, Any]]) -> ArmScores:
        """Arrange finished runs of one arm, entries of `results.collect`."""
        after: dict[str, list[Floats]] = {}
        change: dict[str, list[Floats]] = {}
        for run in runs:
            for metric in run["after"]:
                base = _by_subject(run, "before", metric)
                final = _by_subject(run, "after", metric)
                after.setdefault(metric, []).append(final)
                change.setdefault(metric, []).append(final - base)
        return cls([run["seed"] for run in runs], _stack(after), _stack(change))

    def of_seeds(self, metric: str, seeds: Sequence[int]) -> Floats:
        """Return the scores after training [S, C] of the given seeds, in their order."""
        # seed -> row of this arm's table, which may hold other seeds
        rows = [self.seeds.index(seed) for seed in seeds]
        return self.after[metric][rows]


@dataclass(frozen=True)
class Tables:
    """The finished and judged runs of all arms.

    Attributes:
        arms: Scores by arm; arms without such a run are absent.
        before: Scores of the base [C] by metric.
    """

    arms: dict[str, ArmScores]
    before: dict[str, Floats]

    @classmethod
    def from_runs(cls, runs: Sequence[Mapping[str, Any]]) -> Tables:
        """Arrange the finished runs of `results.collect`."""
        by_arm: dict[str, list[Mapping[str, Any]]] = {}
        before: dict[str, Floats] = {}
        for run in runs:
            if run["state"] == "finished" and "after" in run:
                by_arm.setdefault(run["arm"], []).append(run)
                # All runs start from one base, so it does not matter whose numbers stay.
                before |= {metric: _by_subject(run, "before", metric) for metric in run["after"]}
        arms = {name: ArmScores.from_runs(of_arm) for name, of_arm in by_arm.items()}
        return cls(arms, before)

    def paired(self, arm: str, other: str, metric: str) -> Floats | None:
        """Return arm minus other [S, C] over the seeds that both have; None if there is none."""
        tables = self.common([arm, other], metric)
        return None if tables is None else tables[0] - tables[1]

    def common(self, arms: Sequence[str], metric: str) -> Floats | None:
        """Return the scores of several arms [A, S, C] over the seeds that all of them have.

        None if there is no such seed, or fewer than two subjects that all of them have measured.
        """
        scores: list[ArmScores] = []
        for arm in arms:
            if arm not in self.arms or metric not in self.arms[arm].after:
                return None
            scores.append(self.arms[arm])
        # Only seeds that every arm has: a difference is between runs of the same noise.
        shared = set.intersection(*(set(one.seeds) for one in scores))
        seeds = [seed for seed in scores[0].seeds if seed in shared]
        if not seeds:
            return None
        table = np.stack([one.of_seeds(metric, seeds) for one in scores])
        measured = ~np.isnan(table).any(axis=0)  # cells that can be paired [S, C]
        return table if measured.any(axis=0).sum() >= MIN_CLUSTERS else None


def _by_subject(run: Mapping[str, Any], when: str, metric: str) -> Floats:
    """Return the scores of a run's subjects [C] "before" or "after" training."""
    return np.array(run[when][metric], dtype=np.float64)


def _stack(rows: Mapping[str, Sequence[Floats]]) -> dict[str, Floats]:
    """Return one table [S, C] for each metric."""
    return {metric: np.stack(tables) for metric, tables in rows.items()}
