"""The finished runs of a comparison as tables of seeds x subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tables:
    """The finished runs of each arm as arrays.

    Attributes:
        seeds: Seeds finished by each arm.
        after: Scores after training [S, C] by arm and metric; NaN where not measured.
        change: The same minus the base's.
        before: Scores of the base [C] by metric.
    """

    seeds: dict[str, list[int]]
    after: dict[str, dict[str, Floats]]
    change: dict[str, dict[str, Floats]]
    before: dict[str, Floats]

    @classmethod
    def of(cls, runs: Sequence[Mapping[str, Any]]) -> Tables:
        """Arrange the finished runs of `results.collect`."""
        seeds: dict[str, list[int]] = {}
        after: dict[str, dict[str, list[Floats]]] = {}
        change: dict[str, dict[str, list[Floats]]] = {}
        before: dict[str, Floats] = {}
        for run in runs:
            if run["state"] != "finished" or "after" not in run:
                continue
            seeds.setdefault(run["arm"], []).append(run["seed"])
            for metric in run["after"]:
                base, final = (np.array(run[when][metric], dtype=np.float64) for when in ("before", "after"))
                before[metric] = base
                after.setdefault(run["arm"], {}).setdefault(metric, []).append(final)
                change.setdefault(run["arm"], {}).setdefault(metric, []).append(final - base)

        def stacked(rows: dict[str, dict[str, list[Floats]]]) -> dict[str, dict[str, Floats]]:
            return {arm: {metric: np.stack(r) for metric, r in by.items()} for arm, by in rows.items()}

        return cls(seeds, stacked(after), stacked(change), before)

    def paired(self, arm: str, other: str, metric: str) -> Floats | None:
        """Return arm minus other [S, C] over the seeds that both have; None if there is none."""
        tables = self.common([arm, other], metric)
        return None if tables is None else tables[0] - tables[1]

    def common(self, arms: Sequence[str], metric: str) -> Floats | None:
        """Return the scores of several arms [A, S, C] over the seeds that all of them have; None if none."""
        if not all(metric in self.after.get(arm, ()) for arm in arms):
            return None
        seeds = [seed for seed in self.seeds[arms[0]] if all(seed in self.seeds[arm] for arm in arms)]
        if not seeds:
            return None
        return np.stack([self.after[arm][metric][[self.seeds[arm].index(s) for s in seeds]] for arm in arms])
