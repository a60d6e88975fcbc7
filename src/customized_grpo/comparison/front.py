"""The front: what the base and naive GRPO at its constant weights reach, and how far an arm lies outside.

The base belongs to it: it is naive GRPO of no iterations. Without it, an arm that hardly moves would count as
outside where every constant weight loses one of the two qualities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from customized_grpo.comparison.definitions import IDENTITY, PROMPT, REFERENCE
from customized_grpo.comparison.tables import Tables
from customized_grpo.statistics.crossed import crossed_weights, draw_means
from customized_grpo.statistics.hypervolume import hypervolumes, margins, pareto_front

Floats = NDArray[np.float64]
DRAWS = 2000
"""Joint bootstrap draws of seeds and subjects."""

BASE = "base"


class Points:
    """Final points (identity, prompt) of some arms, with joint bootstrap draws of seeds and subjects.

    Args:
        identity: Scores [A, S, C] of A arms with S seeds on C subjects.
        prompt: The same of the other quality.

    Attributes:
        estimate: Means over all seeds and subjects [1, A, 2].
        draws: Means of each draw [draws, A, 2].
        seeds: How many seeds were drawn from.
        subjects: How many subjects were drawn from.
    """

    def __init__(self, identity: Floats, prompt: Floats) -> None:
        self.seeds, self.subjects = identity.shape[1:]
        # The estimate is one more "draw", in which every seed and subject has the same weight.
        even = (np.full((1, self.seeds), 1 / self.seeds), np.full((1, self.subjects), 1 / self.subjects))
        # a fixed seed, so that a page that is written again says the same
        drawn = crossed_weights(self.seeds, self.subjects, DRAWS, seed=0)
        self.estimate = _means(identity, prompt, even)
        draws = _means(identity, prompt, drawn)
        # A draw may miss every measured cell of an arm when some of its subjects could not be judged.
        self.draws = draws[np.isfinite(draws).all(axis=(1, 2))]

    def interval(self, estimate: float, draws: Floats) -> dict[str, float]:
        """Return the 95 % interval of a statistic: estimate +- t(n - 1) times the spread of its draws.

        n is the number of seeds (of subjects if there is one seed); the spread is widened by
        sqrt(n / (n - 1)), by which drawing from n makes it too small.
        """
        # With one seed chance is in the subjects alone.
        n = self.seeds if self.seeds > 1 else self.subjects
        # stdtrit is the quantile of Student's t; scipy.stats has it too, but takes long to import
        half = float(stdtrit(n - 1, 0.975)) * float(draws.std()) * math.sqrt(n / (n - 1))
        return {"mean": float(estimate), "low": float(estimate) - half, "high": float(estimate) + half}


def _means(identity: Floats, prompt: Floats, weights: tuple[Floats, Floats]) -> Floats:
    """Return the points [draws, A, 2] of both qualities under weights of seeds and of subjects."""
    return np.stack([draw_means(identity, weights), draw_means(prompt, weights)], axis=-1)


class Front:
    """The base, and naive GRPO at constant weights.

    Args:
        names: Arms of the front, without the base.
        tables: Of all arms.
    """

    def __init__(self, names: Sequence[str], tables: Tables) -> None:
        self.tables = tables
        self.names = [name for name in names if _is_judged(name, tables)]

    def to_json(self) -> dict[str, Any] | None:
        """Return what is on the front, by identity, and its hypervolume; None if no arm was judged."""
        points = self._points()
        if points is None:
            return None
        volume = hypervolumes(points.estimate, REFERENCE)[0]
        names = [BASE, *self.names]
        return {
            # index of a point -> its arm; the base is point 0
            "arms": [names[index] for index in pareto_front(points.estimate[0])],
            "hypervolume": points.interval(volume, hypervolumes(points.draws, REFERENCE)),
            "reference": list(REFERENCE),
        }

    def outside(self, arm: str) -> dict[str, Any] | None:
        """Return an arm's margin, the share of draws in which it is above 0, and how many seeds it is about.

        These are the seeds that the arm and the whole front have. None for the front's own.
        """
        points = None if arm in self.names else self._points(arm)
        if points is None:
            return None
        # the last point is the arm, the others are the base and the front
        # Margins are taken within each draw, so that what arm and front share cancels out.
        draws = margins(points.draws[:, -1], points.draws[:, :-1])
        estimate = margins(points.estimate[:, -1], points.estimate[:, :-1])[0]
        margin = points.interval(estimate, draws)
        return {
            "share": float((draws > 0).mean()),
            "outside": margin["low"] > 0,
            "margin": margin,
            "seeds": points.seeds,
        }

    def difference(self, arm: str, other: str) -> dict[str, float] | None:
        """Return the margin of an arm minus that of another, over the seeds that both and the front have.

        The margins of both are taken from the same draws, so what they share cancels.
        """
        points = None if {arm, other} & set(self.names) else self._points(arm, other)
        if points is None:
            return None
        estimate = _margin_differences(points.estimate)[0]
        return points.interval(estimate, _margin_differences(points.draws))

    def gain(self, arm: str) -> dict[str, float] | None:
        """Return by how much hypervolume an arm extends the front."""
        points = None if arm in self.names else self._points(arm)
        if points is None:
            return None
        gain = points.interval(_added_volume(points.estimate)[0], _added_volume(points.draws))
        return {**gain, "low": max(0.0, gain["low"])}  # no point takes area away

    def _points(self, *extra: str) -> Points | None:
        """Return the points of base, front and extra arms, over the seeds that all arms have finished."""
        # Both tables over the same seeds, or the two coordinates of a point would be of different runs.
        identity = self._table([*self.names, *extra], IDENTITY)
        prompt = self._table([*self.names, *extra], PROMPT)
        return None if identity is None or prompt is None else Points(identity, prompt)

    def _table(self, arms: Sequence[str], metric: str) -> Floats | None:
        """Return the scores of base and arms [1 + A, S, C]; the base is the same for every seed."""
        scores = self.tables.common(arms, metric) if self.names else None
        if scores is None:
            return None
        # from [C] to [1, S, C]
        base = np.broadcast_to(self.tables.before[metric], scores[:1].shape)
        return np.concatenate([base, scores])


def _is_judged(arm: str, tables: Tables) -> bool:
    return arm in tables.arms and {IDENTITY, PROMPT} <= set(tables.arms[arm].after)


def _margin_differences(points: Floats) -> Floats:
    """Return by how much the margins [draws] of the last two of the points [draws, A, 2] differ.

    All other points are the front.
    """
    front = points[:, :-2]
    return margins(points[:, -2], front) - margins(points[:, -1], front)


def _added_volume(points: Floats) -> Floats:
    """Return by how much hypervolume the last of the points [draws, A, 2] extends the others [draws]."""
    return hypervolumes(points, REFERENCE) - hypervolumes(points[:, :-1], REFERENCE)
