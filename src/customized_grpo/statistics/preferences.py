"""Preferences between two models: win rates with clustered intervals, and how far voters agree.

A vote is 1 for the first model, 0 for the second, 1/2 for a tie, so the mean is the win rate with ties
counted half. Kappa is agreement beyond chance: Cohen, "A coefficient of agreement for nominal scales"
(1960) for two voters, Fleiss, "Measuring nominal scale agreement among many raters" (1971) for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from customized_grpo.statistics.intervals import clustered_bootstrap

LEVEL = 0.95

ROUNDING = 1e-12
"""Difference of two means of votes that is none."""


@dataclass(frozen=True)
class WinRate:
    """How often the first of two models was preferred.

    Attributes:
        wins: Votes for the first.
        ties: Votes for neither.
        losses: Votes for the second.
        rate: (wins + ties / 2) / votes.
        low: Lower end of the 95 % interval for new subjects; None with fewer than two subjects.
        high: Upper end.
        subjects: How many subjects were voted on.
    """

    wins: int
    ties: int
    losses: int
    rate: float
    low: float | None
    high: float | None
    subjects: int


def win_rate(values: ArrayLike, subjects: Sequence[str]) -> WinRate:
    """Return the win rate of the first model with an interval that resamples whole subjects.

    Where all subjects say the same, resampling would give an interval of no width. Then as many subjects
    bound the chance p of one that says this: p > .025 ** (1 / subjects), the exact (Clopper-Pearson) limit.
    Others may say anything, so the interval is that of p rate + (1 - p) x for x from 0 to 1.

    Args:
        values: [N]: 1, 1/2 or 0 for each vote.
        subjects: [N], the subject of each vote. All votes on a subject are one cluster, whoever gave them.

    Raises:
        ValueError: There is no vote, shapes differ, or a value is none of the three.
    """
    votes = np.asarray(values, dtype=np.float64)
    if votes.shape != (len(subjects),) or not len(votes):
        raise ValueError(f"{votes.shape} votes on {len(subjects)} subjects")
    if not np.isin(votes, (0.0, 0.5, 1.0)).all():
        raise ValueError("a vote is 0, 1/2 or 1")
    count = len(set(subjects))
    low, high = _interval(votes, subjects, count)
    wins = int((votes == 1).sum())
    ties = int((votes == 0.5).sum())
    return WinRate(wins, ties, len(votes) - wins - ties, float(votes.mean()), low, high, count)


def _interval(
    votes: NDArray[np.float64], subjects: Sequence[str], count: int
) -> tuple[float | None, float | None]:
    if count < 2:
        return None, None
    index = np.unique(np.asarray(subjects), return_inverse=True)[1]
    means = np.bincount(index, votes) / np.bincount(index)
    if np.ptp(means) < ROUNDING:
        same = float(((1 - LEVEL) / 2) ** (1 / count))
        return float(means[0]) * same, 1 - same * (1 - float(means[0]))
    interval = clustered_bootstrap(votes, np.asarray(subjects), level=LEVEL)
    return max(0.0, interval.low), min(1.0, interval.high)


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Return the agreement of two voters beyond chance: (p_o - p_e) / (1 - p_e).

    Args:
        first: [N], what the first voter chose for each item.
        second: [N], the same items in the same order.

    Returns:
        1 for perfect agreement, 0 for that of chance; None if there is no item, or both voters have always
        made the same one choice, so that chance alone agrees.

    Raises:
        ValueError: The numbers of items differ.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} items")
    if not first:
        return None
    observed = float(np.mean([one == other for one, other in zip(first, second, strict=True)]))
    expected = 0.0
    for choice in {*first, *second}:
        expected += first.count(choice) / len(first) * second.count(choice) / len(second)
    return None if expected >= 1 else (observed - expected) / (1 - expected)


def fleiss_kappa(counts: ArrayLike) -> float | None:
    """Return the agreement of several voters beyond chance: (P - P_e) / (1 - P_e).

    P is the mean over items of the share of agreeing pairs of voters, P_e the sum of the squared shares of
    the choices.

    Args:
        counts: [items, choices], how many voters made each choice; all items have equally many votes.

    Returns:
        As `cohen_kappa`.

    Raises:
        ValueError: Items have different numbers of votes, or fewer than two.
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or not len(table):
        return None
    votes = table.sum(axis=1)
    n = votes[0]
    if n < 2 or (votes != n).any():
        raise ValueError("every item needs the same number of votes, at least two")
    observed = float((((table**2).sum(axis=1) - n) / (n * (n - 1))).mean())
    shares = table.sum(axis=0) / table.sum()
    expected = float((shares**2).sum())
    return None if expected >= 1 else (observed - expected) / (1 - expected)
