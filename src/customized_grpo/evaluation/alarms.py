"""Alarms: which monitor moved, by how much, and what to do about it.

An alarm compares the policy with the base on the same held-out prompts and noise. It must hold at `patience`
evaluations in a row, because a 95 % interval is wrong now and then and training looks at many of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from customized_grpo.statistics.intervals import Interval


class TrainingHealth(NamedTuple):
    """What training said of itself since the last evaluation; all by kind of reward.

    Attributes:
        zero_std: Share of groups without signal.
        nan: Share of samples without a score.
        reward: Mean reward of the samples.
    """

    zero_std: Mapping[str, float]
    nan: Mapping[str, float]
    reward: Mapping[str, float]


@dataclass(frozen=True)
class MonitorRecord:
    """The monitors at one evaluation. What was not measured stays empty and raises no alarm.

    Attributes:
        iteration: Of training.
        copy_change: Copy score now minus that of the base, paired.
        background_change: Background similarity likewise.
        proxy_change: Change of each training reward on held-out prompts, by kind ("identity", "prompt").
        held_out_change: Change of the judge of the same kind, under the same keys.
        zero_std_share: Share of training groups without signal since the last evaluation, by reward.
        nan_share: Share of unscored samples likewise.
        diversity_ratio: In-group diversity divided by that of the base.
        image_shift: Each image statistic's change in units of its standard deviation over the base's images.
        train_reward: Mean of each training reward over the samples since the last evaluation, by kind.
        train_gap: The same minus the reward on held-out prompts now, in units of the reward's standard
            deviation over the base's held-out images.
    """

    iteration: int
    copy_change: Interval | None = None
    background_change: Interval | None = None
    proxy_change: Mapping[str, Interval] = field(default_factory=dict)
    held_out_change: Mapping[str, Interval] = field(default_factory=dict)
    zero_std_share: Mapping[str, float] = field(default_factory=dict)
    nan_share: Mapping[str, float] = field(default_factory=dict)
    diversity_ratio: float | None = None
    image_shift: Mapping[str, float] = field(default_factory=dict)
    train_reward: Mapping[str, float] = field(default_factory=dict)
    train_gap: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Thresholds:
    """When a monitor becomes an alarm.

    Attributes:
        copy_rise: Alarm when the whole interval of the copy score's change lies above this.
        background_rise: Likewise for background similarity.
        zero_std_share: Alarm above this share of groups without signal.
        nan_share: Alarm above this share of unscored samples.
        diversity_ratio: Alarm below this fraction of the base's diversity.
        image_shift: Alarm when an image statistic moved by more than this many standard deviations.
        train_gap_rise: Alarm when the lead of the reward in training over the same reward on held-out prompts
            grew by more than this many standard deviations since the first evaluation after the base's.
        patience: Evaluations in a row for which the condition must hold.
    """

    copy_rise: float = 0.0
    background_rise: float = 0.0
    zero_std_share: float = 0.5
    nan_share: float = 0.05
    diversity_ratio: float = 0.5
    image_shift: float = 1.0
    train_gap_rise: float = 0.5
    patience: int = 2

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience must be at least 1, got {self.patience}")


@dataclass(frozen=True)
class Alarm:
    """One thing that moved.

    Attributes:
        name: Stable identifier, for example "copy_score" or "held_out/identity".
        iteration: The latest evaluation at which it held.
        message: What moved, from what limit, and what that usually means.
    """

    name: str
    iteration: int
    message: str


def check_alarms(history: Sequence[MonitorRecord], thresholds: Thresholds) -> list[Alarm]:
    """Return the alarms that stand at the last record of `history` (oldest first), in a fixed order.

    Raises:
        ValueError: The records are not in ascending order of iteration.
    """
    iterations = [record.iteration for record in history]
    if iterations != sorted(set(iterations)):
        raise ValueError("history must be in ascending order of iteration")
    if len(history) < thresholds.patience:
        return []
    first = history[0]
    recent = [_conditions(record, first, thresholds) for record in history[-thresholds.patience :]]
    standing = [name for name in recent[-1] if all(name in conditions for conditions in recent)]
    return [Alarm(name, iterations[-1], recent[-1][name]) for name in standing]


def _conditions(record: MonitorRecord, first: MonitorRecord, limit: Thresholds) -> dict[str, str]:
    """Return the message of every condition that holds in one record, by alarm name."""
    return {
        **_copying(record, limit),
        **_hacking(record),
        **_health(record, limit),
        **_collapse(record, limit),
        **_overfitting(record, first, limit),
    }


def _copying(record: MonitorRecord, limit: Thresholds) -> dict[str, str]:
    found = {}
    for name, change, rise in (
        ("copy_score", record.copy_change, limit.copy_rise),
        ("background_similarity", record.background_change, limit.background_rise),
    ):
        if change is not None and change.low > rise:
            found[name] = (
                f"{name} rose by {change} over the base (limit {rise:g}): the policy copies its reference. "
                "Raise the prompt weight, or segment both images for the identity reward."
            )
    return found


def _hacking(record: MonitorRecord) -> dict[str, str]:
    found = {}
    for kind in sorted(record.proxy_change.keys() & record.held_out_change.keys()):
        proxy, held_out = record.proxy_change[kind], record.held_out_change[kind]
        if proxy.low > 0 and held_out.high < 0:
            found[f"held_out/{kind}"] = (
                f"the held-out {kind} judge fell by {held_out} while the {kind} reward rose by {proxy}: the "
                "reward is being hacked. Stop earlier, lower the learning rate or add a KL penalty."
            )
        elif held_out.high < 0:
            found[f"degraded/{kind}"] = (
                f"the held-out {kind} judge fell by {held_out}: the policy trades {kind} away. "
                f"Raise the weight of {kind}."
            )
    return found


def _health(record: MonitorRecord, limit: Thresholds) -> dict[str, str]:
    found = {}
    for reward, share in sorted(record.zero_std_share.items()):
        if share > limit.zero_std_share:
            found[f"zero_std/{reward}"] = (
                f"{share:.0%} of the groups have no spread in reward {reward} "
                f"(limit {limit.zero_std_share:.0%}): it is saturated, "
                "or too little noise is injected. Raise eta or use harder prompts."
            )
    for reward, share in sorted(record.nan_share.items()):
        if share > limit.nan_share:
            found[f"nan/{reward}"] = (
                f"{share:.0%} of the samples could not be scored by reward {reward} "
                f"(limit {limit.nan_share:.0%}): read its error messages in the log."
            )
    return found


def _collapse(record: MonitorRecord, limit: Thresholds) -> dict[str, str]:
    found = {}
    ratio = record.diversity_ratio
    if ratio is not None and ratio < limit.diversity_ratio:
        found["diversity"] = (
            f"in-group diversity is {ratio:.2f} of the base's (limit {limit.diversity_ratio:.2f}): "
            "the policy collapses to one picture per prompt."
        )
    for name, shift in sorted(record.image_shift.items()):
        if abs(shift) > limit.image_shift:
            found[f"image/{name}"] = (
                f"{name} moved by {shift:+.2f} standard deviations of the base's images "
                f"(limit {limit.image_shift:g}): look at the samples."
            )
    return found


def _overfitting(record: MonitorRecord, first: MonitorRecord, limit: Thresholds) -> dict[str, str]:
    found = {}
    for kind in sorted(record.train_gap.keys() & first.train_gap.keys()):
        rise = record.train_gap[kind] - first.train_gap[kind]
        if rise > limit.train_gap_rise:
            found[f"train_gap/{kind}"] = (
                f"the {kind} reward runs ahead in training of what it is on held-out prompts, by {rise:.2f} "
                f"standard deviations more than at first (limit {limit.train_gap_rise:g}): the policy learns "
                "its training rows by heart. Stop earlier or train on more subjects."
            )
    return found
