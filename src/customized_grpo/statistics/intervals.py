"""Confidence intervals that resample subjects, not images.

Images of one subject share its reference, its difficulty and often its seeds, so they are not independent:
750 images of 30 subjects say little more than 30 numbers about the next subject. Every interval here draws
whole clusters with replacement, each with all of its rows.

The interval is the *expanded percentile* bootstrap (Hesterberg, The American Statistician 69:4, 2015, section
5.3). The plain percentile interval is too short for few clusters by about sqrt((C - 1) / C) z / t; here the
percentile level is widened to Phi(t(alpha / 2, C - 1) sqrt(C / (C - 1))), which makes it equal to Student's t
for normal data. BCa corrects skewness but not this shortness, and studentised intervals are erratic for few
clusters. Measured coverage of the 95 % interval (plain percentile in brackets), normal data: 4 clusters 87 %
(81), 8: 94 (88), 16: 95 (92), 30: 93 (92); exponential data: 84 (79), 92 (87), 94 (91), 93 (92).

NaN means "could not be scored". It is an error unless the caller says `nan="omit"`, and then `Interval.rows`
and `Interval.clusters` say how many were left. Infinities are always an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

Clusters = Sequence[str] | Sequence[int] | NDArray[np.generic]
NanPolicy = Literal["raise", "omit"]
Floats = NDArray[np.float64]

FEW_CLUSTERS = 8
"""With fewer clusters a 95 % interval covers less than it says; see the measured coverage above."""


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval.

    Attributes:
        mean: Over all rows (so a cluster counts by its number of rows).
        low: Lower end.
        high: Upper end.
        level: Confidence, for example .95.
        rows: How many rows were used.
        clusters: How many clusters they came from.
    """

    mean: float
    low: float
    high: float
    level: float
    rows: int
    clusters: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def clustered_bootstrap(
    values: ArrayLike,
    clusters: Clusters,
    *,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    nan: NanPolicy = "raise",
) -> Interval:
    """Return the mean of `values` with an interval for new clusters of the same kind.

    Args:
        values: [N].
        clusters: [N], the cluster (subject) of each row.
        n_boot: Number of bootstrap draws.
        seed: Same seed, same interval.
        level: Confidence, between 0 and 1.
        nan: "raise", or "omit" to leave out rows that are NaN.

    Raises:
        ValueError: Shapes differ, fewer than two clusters are left, a value is infinite, or NaN under
            "raise".
    """
    if not 0 < level < 1 or n_boot < 1:
        raise ValueError(f"need 0 < level < 1 and n_boot >= 1, got level={level}, n_boot={n_boot}")
    kept, index = _clean(np.asarray(values, dtype=np.float64), np.asarray(clusters), nan)
    count = _count(index)
    # [N] -> one column [1, N] -> its means [1, n_boot] -> [n_boot]
    means = bootstrap_means(kept[None], index, n_boot, seed)[0]
    low, high = expanded_quantiles(means, count, level)
    return Interval(float(kept.mean()), float(low), float(high), level, len(kept), count)


@dataclass(frozen=True)
class Test:
    """A statistic of means with its interval, and how surprising it would be if the truth were 0.

    Attributes:
        interval: Of the statistic; its `mean` is the statistic of all rows.
        p: Two-sided p-value: 1 minus the level of the interval that just touches 0.
    """

    interval: Interval
    p: float


def clustered_test(
    columns: ArrayLike,
    clusters: Clusters,
    statistic: Callable[[Floats], Floats],
    *,
    n_boot: int = 20_000,
    seed: int = 0,
    level: float = 0.95,
) -> Test:
    """Return a statistic of the means of several columns, such as a product or a difference of products.

    The interval is that of `clustered_bootstrap`; p inverts the same expansion, so that p < 1 - level exactly
    when the interval excludes 0 (up to the draws), and is never below what `n_boot` draws can show.

    Args:
        columns: [K, N]; rows where one of them is NaN are left out.
        clusters: [N], the cluster (subject) of each row.
        statistic: Maps means [K, draws] to values [draws].
        n_boot: Number of bootstrap draws.
        seed: Same seed, same result.
        level: Confidence of the interval, between 0 and 1.

    Raises:
        ValueError: As `clustered_bootstrap`.
    """
    table = np.asarray(columns, dtype=np.float64)
    # A sum over columns is NaN where one of them is: rows are left out of all columns together.
    _, index = _clean(table.sum(0), np.asarray(clusters), "omit")
    kept = table[:, ~np.isnan(table.sum(0))]
    count = _count(index)
    draws = statistic(bootstrap_means(kept, index, n_boot, seed))
    low, high = expanded_quantiles(draws, count, level)
    value = float(statistic(kept.mean(1, keepdims=True))[0])
    # A draw of exactly 0 counts on both sides: ties must not make a difference significant.
    beyond = min((draws <= 0).mean(), (draws >= 0).mean())
    # No draw beyond 0 does not mean p = 0: n_boot draws show nothing below 1 / (n_boot + 1).
    share = min(max(beyond, 1 / (n_boot + 1)), 0.5)
    # The inverse of `expanded_quantiles`: from the share of draws back to Student's t.
    p = float(2 * stdtr(count - 1, ndtri(share) / _widening(count)))
    return Test(Interval(value, float(low), float(high), level, kept.shape[1], count), min(p, 1.0))


def _count(index: NDArray[np.intp]) -> int:
    count = int(index.max(initial=-1)) + 1
    if count < 2:
        raise ValueError(f"an interval needs at least 2 clusters, got {count}")
    return count


def expanded_quantiles(draws: Floats, count: int, level: float) -> Floats:
    """Return the ends of the expanded percentile interval of draws [n_boot, ...], as an array [2, ...].

    Args:
        draws: What each draw of clusters gives.
        count: Number of clusters, at least 2.
        level: Confidence, between 0 and 1.
    """
    tail = float(ndtr(stdtrit(count - 1, (1 - level) / 2) * _widening(count)))
    ends: Floats = np.quantile(draws, [tail, 1 - tail], axis=0)
    return ends


def _widening(count: int) -> float:
    return math.sqrt(count / (count - 1))


def bootstrap_means(columns: Floats, index: NDArray[np.intp], n_boot: int, seed: int) -> Floats:
    """Return means [K, n_boot] of columns [K, N] over clusters drawn with replacement.

    Args:
        columns: Without NaN.
        index: Number of each row's cluster [N], from 0; at least two clusters.
        n_boot: Number of draws.
        seed: Same seed and clusters, same draws: columns of several calls are paired.
    """
    count = _count(index)
    # Row -> cluster: sums [clusters, K] are all that a draw of whole clusters needs.
    sums = np.stack([np.bincount(index, column, count) for column in columns], axis=1)
    sizes = np.bincount(index, minlength=count).astype(np.float64)
    # How often each cluster is drawn: [n_boot, clusters].
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), n_boot)
    # A mean over rows, not of cluster means: a cluster drawn twice brings all of its rows twice.
    return ((draws @ sums) / (draws @ sizes)[:, None]).T


def paired_difference(
    after: ArrayLike,
    before: ArrayLike,
    clusters: Clusters,
    *,
    n_boot: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    nan: NanPolicy = "raise",
) -> Interval:
    """Return the mean of after - before, row by row, with its clustered interval.

    Rows are pairs: the same prompt, reference and noise, before and after. What both share cancels, so this
    is far narrower than the difference of two separate intervals. Under `nan="omit"` a pair is left out when
    either is NaN.

    Args:
        after: [N].
        before: [N], same rows in the same order.
        clusters, n_boot, seed, level, nan: As `clustered_bootstrap`.

    Raises:
        ValueError: As `clustered_bootstrap`.
    """
    first = np.asarray(before, dtype=np.float64)
    second = np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"after has shape {second.shape}, before {first.shape}")
    if np.isinf(first).any() or np.isinf(second).any():
        raise ValueError("values must not be infinite")
    return clustered_bootstrap(second - first, clusters, n_boot=n_boot, seed=seed, level=level, nan=nan)


def _clean(
    values: NDArray[np.float64], clusters: NDArray[np.generic], nan: NanPolicy
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the usable values and a cluster number 0 .. C-1 for each."""
    if values.ndim != 1 or clusters.shape != values.shape:
        raise ValueError(f"values and clusters must both be [N], got {values.shape} and {clusters.shape}")
    if np.isinf(values).any():
        raise ValueError("values must not be infinite")
    missing = np.isnan(values)
    if nan == "raise" and missing.any():
        raise ValueError(
            f'{missing.sum()} of {len(values)} values are NaN; pass nan="omit" to leave them out'
        )
    # Numbered after rows are left out, so that a cluster without rows has no number.
    index = np.unique(clusters[~missing], return_inverse=True)[1]
    return values[~missing], index
