"""The numbers of one training iteration: its line in metrics.jsonl."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from customized_grpo.algorithms import conflict
from customized_grpo.evaluation.alarms import TrainingHealth
from customized_grpo.statistics import monitors
from customized_grpo.training.signal import LearningSignal


class Clock:
    """Seconds of the phases of one iteration."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.phases: dict[str, float] = {}
        self._nested = 0.0  # seconds of the phases that ended inside the one that runs

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block as a phase; a phase inside another counts as its own only."""
        start = time.monotonic()
        nested_before = self._nested
        self._nested = 0.0
        yield
        seconds = time.monotonic() - start
        self.phases[name] = self.phases.get(name, 0.0) + seconds - self._nested
        self._nested = nested_before + seconds  # to the phase around this one, all of it is nested

    def metrics(self) -> dict[str, float]:
        """Return the seconds by phase, and those of the whole iteration."""
        phases = {f"time/{name}_s": seconds for name, seconds in self.phases.items()}
        return {**phases, "time/iteration_s": time.monotonic() - self.start}


def signal_metrics(signal: LearningSignal, group_size: int) -> dict[str, float]:
    """Return the statistics of the rewards by kind and by name, of their conflict, and gaps in the signal."""
    rewards = signal.rewards
    spread = group_std(rewards, group_size)
    zero = zero_std_share(rewards, signal.present, group_size)
    missing = nan_share(rewards, signal.present)
    return {
        **{f"reward/{kind}": float(rewards[:, k].nanmean()) for k, kind in enumerate(signal.kinds)},
        **{f"reward/{kind}_group_std": float(spread[k]) for k, kind in enumerate(signal.kinds)},
        **_score_metrics(signal, group_size),
        **(_conflict_metrics(signal, group_size) if signal.has_pair else {}),
        "health/zero_std_groups": float(zero.nan_to_num().max()),
        "health/nan_samples": float(missing.nan_to_num().max()),
    }


def _score_metrics(signal: LearningSignal, group_size: int) -> dict[str, float]:
    """Return mean, spread and gaps of each reward: "score/NAME", and more below that name."""
    spread = group_std(signal.scores, group_size)
    missing = nan_share(signal.scores, signal.asked)
    metrics: dict[str, float] = {}
    for k, name in enumerate(signal.names):
        scores = signal.scores[:, k]
        # torch has nanmean, but no nanstd
        scored = scores[~scores.isnan()]
        metrics |= {
            f"score/{name}": float(scores.nanmean()),
            f"score/{name}/std": float(scored.std()) if len(scored) > 1 else math.nan,
            f"score/{name}/group_std": float(spread[k]),
            f"score/{name}/nan_share": float(missing[k]),
        }
    return metrics


def _conflict_metrics(signal: LearningSignal, group_size: int) -> dict[str, float]:
    """Return where samples stand on prompt and identity, and the null of that at their correlation."""
    # Columns are kinds, in the order prompt, identity, quality.
    rho = monitors.reward_correlation(signal.rewards[:, :2], group_size)
    return {
        **{
            f"advantage/{name}": share for name, share in conflict.quadrants(signal.advantages[:, :2]).items()
        },
        "advantage/rho": rho,
        "advantage/conflict_null": math.nan if math.isnan(rho) else conflict.conflict_null(rho),
    }


def nan_share(scores: Tensor, asked: Tensor) -> Tensor:
    """Return `monitors.nan_share` of the samples that were to be scored [K]; NaN where none was.

    Args:
        scores: [N, K].
        asked: Which of them were to be there [N, K].
    """
    shares = torch.full((scores.shape[1],), math.nan)
    for k in range(scores.shape[1]):
        # A slice keeps the dimension of rewards; rows that did not choose this one are no gaps.
        shares[k] = monitors.nan_share(scores[asked[:, k], k : k + 1])[0]
    return shares


def zero_std_share(scores: Tensor, asked: Tensor, group_size: int) -> Tensor:
    """Return `monitors.zero_std_share` of the groups that were to be scored [K]; NaN where none was.

    Args:
        scores: [N, K], groups are consecutive rows.
        asked: Which of them were to be there [N, K], the same within a group.
        group_size: G.
    """
    shares = torch.full((scores.shape[1],), math.nan)
    for k in range(scores.shape[1]):
        if bool(asked[:, k].any()):
            shares[k] = monitors.zero_std_share(scores[asked[:, k], k : k + 1], group_size)[0]
    return shares


def group_std(scores: Tensor, group_size: int) -> Tensor:
    """Return the mean over groups of the standard deviation inside them [K]; scores are [N, K]."""
    # [N, K] -> [P, G, K]; a group with a NaN has no std and is left out of the mean
    return scores.reshape(-1, group_size, scores.shape[1]).std(1).nanmean(0)


def signal_health(signal: LearningSignal, group_size: int) -> dict[str, float]:
    """Return the share of groups without signal, "zero/NAME", and of unscored samples, "nan/NAME".

    Also "reward/KIND", the mean reward of the samples; left out where none was scored.
    """
    zero = zero_std_share(signal.scores, signal.asked, group_size)
    missing = nan_share(signal.scores, signal.asked)
    means = signal.rewards.nanmean(0)
    return {
        **{f"zero/{name}": float(zero[k]) for k, name in enumerate(signal.names) if zero[k].isfinite()},
        **{f"nan/{name}": float(missing[k]) for k, name in enumerate(signal.names) if missing[k].isfinite()},
        **{f"reward/{kind}": float(means[k]) for k, kind in enumerate(signal.kinds) if means[k].isfinite()},
    }


def mean_health(iterations: Sequence[dict[str, float]]) -> TrainingHealth:
    """Return the means of several iterations' `signal_health`, each over the iterations that have it."""

    def means(quantity: str) -> dict[str, float]:
        values: dict[str, list[float]] = {}
        for iteration in iterations:
            for key, value in iteration.items():
                if key.startswith(f"{quantity}/"):
                    values.setdefault(key.removeprefix(f"{quantity}/"), []).append(value)
        return {name: sum(column) / len(column) for name, column in values.items()}

    return TrainingHealth(means("zero"), means("nan"), means("reward"))


def pixel_diversities(images: Tensor, group_size: int) -> Tensor:
    """Return the mean cosine distance of the images of each group [N / G].

    The distance is between pixels minus 0.5, that is, from mid-grey.

    Args:
        images: [N, 3, H, W] in [0, 1], in whole groups.
        group_size: G.
    """
    # Without the shift all images share the direction of white, and every distance is near 0.
    pixels = images.flatten(1).cpu() - 0.5
    return monitors.in_group_diversity(pixels, group_size)
