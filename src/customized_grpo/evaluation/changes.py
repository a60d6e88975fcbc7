"""How an evaluation differs from the base's: the record that the alarms are computed from."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from customized_grpo.evaluation.alarms import MonitorRecord, TrainingHealth
from customized_grpo.evaluation.scores import DIVERSITY, HeldOutScores
from customized_grpo.kinds import KINDS
from customized_grpo.statistics.intervals import Interval

SMALLEST_SPREAD = 0.05
"""Floor of the spread that a shift is measured in.

Image statistics lie in [0, 1]; one that hardly varies over the base's images (no bright pixels anywhere, say)
must not raise an alarm for a change that nobody would see.
"""

SCORES = ("score/", "judge/")
"""Beginnings of the names of metrics that may lack values where an image could not be scored."""

OTHER_MONITORS = ("monitor/copy_score", "monitor/background_similarity", DIVERSITY)
"""Monitors that are no image statistics and have conditions of their own."""


def monitor_record(
    iteration: int, now: HeldOutScores, base: HeldOutScores, health: TrainingHealth
) -> MonitorRecord:
    """Return the record of one evaluation.

    Args:
        iteration: Number of finished iterations.
        now: Scores of the evaluation.
        base: Scores of the evaluation before training.
        health: Training statistics since the last evaluation.
    """

    def change(metric: str) -> Interval | None:
        measured = metric in now.columns and now.is_measured(metric, base)
        return now.change(metric, base) if measured else None

    proxy_change: dict[str, Interval] = {}
    held_out_change: dict[str, Interval] = {}
    for kind in KINDS:
        reward = change(f"reward/{kind}")
        judge = change(f"judge/{kind}")
        if reward is not None and judge is not None:  # alarms compare the two
            proxy_change[kind] = reward
            held_out_change[kind] = judge
    return MonitorRecord(
        iteration,
        copy_change=change("monitor/copy_score"),
        background_change=change("monitor/background_similarity"),
        proxy_change=proxy_change,
        held_out_change=held_out_change,
        zero_std_share=health.zero_std,
        nan_share=health.nan,
        diversity_ratio=_diversity_ratio(now, base),
        lost_share=_lost_shares(now, base),
        image_shift=_image_shifts(now, base),
        train_reward=health.reward,
        train_gap=_scaled_gaps(now, base, health.reward),
    )


def train_gaps(scores: HeldOutScores, train_reward: Mapping[str, float]) -> dict[str, float]:
    """Return by how much each reward is higher in training than on held-out prompts, "gap/KIND".

    Training draws noise in its steps and evaluation does not, so the gap is not zero to begin with: only its
    growth means anything.

    Args:
        scores: Scores of an evaluation.
        train_reward: Mean of each reward over the training samples since the one before, by kind.
    """
    return {
        f"gap/{kind}": reward - scores.mean(f"reward/{kind}")
        for kind, reward in train_reward.items()
        if f"reward/{kind}" in scores.columns
    }


def _lost_shares(now: HeldOutScores, base: HeldOutScores) -> dict[str, float]:
    """Return the share of images that have lost their score since the base, by metric; 0 is left out."""
    shares: dict[str, float] = {}
    for name, values in now.columns.items():
        if name.startswith(SCORES) and name in base.columns:
            pairs = zip(values, base.columns[name], strict=True)
            scored = [value for value, before in pairs if not math.isnan(before)]
            lost = sum(map(math.isnan, scored))
            if lost:
                shares[name] = lost / len(scored)
    return shares


def _image_shifts(now: HeldOutScores, base: HeldOutScores) -> dict[str, float]:
    """Return the signed shift of each image statistic, in standard deviations over the base's images."""
    shifts: dict[str, float] = {}
    if len(base.ids) < 2:  # one image has no spread
        return shifts
    for name in now.columns:
        if name.startswith("monitor/") and name not in OTHER_MONITORS:
            before = torch.tensor(base.columns[name])
            shift = torch.tensor(now.columns[name]).mean() - before.mean()
            spread = before.std().clamp_min(SMALLEST_SPREAD)
            shifts[name.removeprefix("monitor/")] = float(shift / spread)
    return shifts


def _diversity_ratio(now: HeldOutScores, base: HeldOutScores) -> float | None:
    """Return the diversity of each prompt's images over that of the base; None if it was not measured."""
    if DIVERSITY not in now.columns or DIVERSITY not in base.columns:
        return None
    before = base.mean(DIVERSITY)
    return now.mean(DIVERSITY) / before if before > 0 else None


def _scaled_gaps(
    now: HeldOutScores, base: HeldOutScores, train_reward: Mapping[str, float]
) -> dict[str, float]:
    """Return `train_gaps` by kind, in standard deviations of the reward over the base's images."""
    gaps = {}
    for name, gap in train_gaps(now, train_reward).items():
        kind = name.removeprefix("gap/")
        values = torch.tensor(base.columns[f"reward/{kind}"])
        # An image without a score has no part in the spread.
        values = values[~values.isnan()]
        spread = float(values.std()) if len(values) > 1 else 0.0
        if spread > 0 and not math.isnan(gap):  # one image or a constant reward has no spread
            gaps[kind] = gap / spread
    return gaps
