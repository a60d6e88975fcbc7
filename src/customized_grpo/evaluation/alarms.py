"""Alarms: which monitor moved, by how much, and what to do about it.

An alarm compares the policy with the base on the same held-out prompts and noise. It must hold at PATIENCE
evaluations in a row, because one in twenty 95 % intervals misses, and a training computes many of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from customized_grpo.statistics.intervals import Interval

PATIENCE = 2
"""Evaluations in a row at which the condition of an alarm must hold."""

COPY_RISE_LIMIT = 0.0
"""Alarm when the whole interval of the copy score's change lies above this."""

BACKGROUND_RISE_LIMIT = 0.0
"""Alarm when the whole interval of background similarity's change lies above this."""

ZERO_STD_SHARE_LIMIT = 0.5
"""Alarm above this share of groups without signal."""

NAN_SHARE_LIMIT = 0.05
"""Alarm above this share of unscored samples."""

DIVERSITY_RATIO_LIMIT = 0.5
"""Alarm below this fraction of the base's diversity."""

IMAGE_SHIFT_LIMIT = 1.0
"""Alarm when an image statistic moved by more than this many standard deviations."""

TRAIN_GAP_RISE_LIMIT = 0.5
"""Alarm when the lead of a reward in training over the same reward on held-out prompts grew by more than this
many standard deviations since the first evaluation after the base's."""


class TrainingHealth(NamedTuple):
    """Training statistics since the last evaluation.

    Attributes:
        zero_std: Share of groups without signal, by name of the reward.
        nan: Share of samples without a score, by name of the reward.
        reward: Mean reward of the samples, by kind.
    """

    zero_std: Mapping[str, float]
    nan: Mapping[str, float]
    reward: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {name: dict(values) for name, values in self._asdict().items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingHealth:
        """Read back the keys that `to_json` wrote."""
        return cls(data["zero_std"], data["nan"], data["reward"])


@dataclass(frozen=True)
class MonitorRecord:
    """The monitors at one evaluation. What was not measured stays empty and raises no alarm.

    Attributes:
        iteration: Number of finished iterations.
        copy_change: Copy score now minus that of the base, paired.
        background_change: Background similarity now minus that of the base, paired.
        proxy_change: Change of each training reward on held-out prompts, by kind.
        held_out_change: Change of the judge of the same kind, under the same keys.
        zero_std_share: Share of training groups without signal since the last evaluation, by reward.
        nan_share: Share of unscored training samples since the last evaluation, by reward.
        diversity_ratio: In-group diversity divided by that of the base.
        lost_share: Share of the held-out images that a reward or judge could score before training and cannot
            score now, by the metric's name.
        image_shift: Each image statistic's change in units of its standard deviation over the base's images.
        train_reward: Mean of each training reward over the samples since the last evaluation, by kind.
        train_gap: `train_reward` minus the reward on held-out prompts now, in units of the reward's standard
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
    lost_share: Mapping[str, float] = field(default_factory=dict)
    image_shift: Mapping[str, float] = field(default_factory=dict)
    train_reward: Mapping[str, float] = field(default_factory=dict)
    train_gap: Mapping[str, float] = field(default_factory=dict)

    @property
    def health(self) -> TrainingHealth:
        """Return the statistics of training in this record."""
        return TrainingHealth(self.zero_std_share, self.nan_share, self.train_reward)


@dataclass(frozen=True)
class Alarm:
    """A monitor that moved too far.

    Attributes:
        name: Stable identifier, for example "copy_score" or "held_out/identity".
        iteration: The latest evaluation at which it held.
        message: What moved, the limit, and what that usually means.
    """

    name: str
    iteration: int
    message: str


def check_alarms(history: Sequence[MonitorRecord]) -> list[Alarm]:
    """Return the alarms at the last record of `history` (oldest first), in a fixed order.

    Raises:
        ValueError: The records are not in ascending order of iteration.
    """
    iterations = [record.iteration for record in history]
    if iterations != sorted(set(iterations)):
        raise ValueError("history must be in ascending order of iteration")
    if len(history) < PATIENCE:
        return []
    # One evaluation may be chance: only what holds at each of the last ones is an alarm.
    recent = [conditions(record, history[0]) for record in history[-PATIENCE:]]
    lasting = set(recent[0]).intersection(*recent)
    # of an alarm that lasts the latest message is shown
    return [Alarm(name, iterations[-1], text) for name, text in recent[-1].items() if name in lasting]


def conditions(record: MonitorRecord, first: MonitorRecord) -> dict[str, str]:
    """Return the message of every condition that holds in one record, by alarm name.

    Args:
        record: The monitors at an evaluation.
        first: Those at the first evaluation after the base's, to which the lead of training is compared.
    """
    return {
        **_copying(record),
        **_hacking(record),
        **_health(record),
        **_collapse(record),
        **_overfitting(record, first),
    }


def _copying(record: MonitorRecord) -> dict[str, str]:
    messages = {}
    for name, change, rise in (
        ("copy_score", record.copy_change, COPY_RISE_LIMIT),
        ("background_similarity", record.background_change, BACKGROUND_RISE_LIMIT),
    ):
        if change is not None and change.low > rise:
            messages[name] = (
                f"{name} rose by {change} over the base (limit {rise:g}): the policy copies its reference. "
                "Raise the prompt weight, or mask the reference for the identity reward (segment: reference)."
            )
    return messages


def _hacking(record: MonitorRecord) -> dict[str, str]:
    messages = {}
    # A kind that no judge scores has nothing that its reward could be compared with.
    for kind in sorted(record.proxy_change.keys() & record.held_out_change.keys()):
        proxy = record.proxy_change[kind]
        held_out = record.held_out_change[kind]
        # whole intervals: a mean may fall by chance
        if proxy.low > 0 and held_out.high < 0:
            messages[f"held_out/{kind}"] = (
                f"the held-out {kind} judge fell by {_fall(held_out)} while the {kind} reward rose by {proxy}"
                ": the reward is being hacked. Stop earlier, lower the learning rate or add a KL penalty."
            )
        elif held_out.high < 0:
            messages[f"degraded/{kind}"] = (
                f"the held-out {kind} judge fell by {_fall(held_out)}: the policy trades {kind} away. "
                f"Raise the weight of {kind}."
            )
    return messages


def _fall(change: Interval) -> str:
    """Return how far a measure fell, as a size: "fell by -0.1" would be a rise."""
    return str(replace(change, mean=-change.mean, low=-change.high, high=-change.low))


def _health(record: MonitorRecord) -> dict[str, str]:
    messages = {}
    for reward, share in sorted(record.zero_std_share.items()):
        if share > ZERO_STD_SHARE_LIMIT:
            messages[f"zero_std/{reward}"] = (
                f"{share:.0%} of the groups have no spread in reward {reward} "
                f"(limit {ZERO_STD_SHARE_LIMIT:.0%}): it is saturated, "
                "or too little noise is injected. Raise eta or use harder prompts."
            )
    for reward, share in sorted(record.nan_share.items()):
        if share > NAN_SHARE_LIMIT:
            messages[f"nan/{reward}"] = (
                f"{share:.0%} of the samples could not be scored by reward {reward} "
                f"(limit {NAN_SHARE_LIMIT:.0%}): read its error messages in the log."
            )
    for metric, share in sorted(record.lost_share.items()):
        if share > NAN_SHARE_LIMIT:
            messages[f"lost/{metric}"] = (
                f"{share:.0%} of the held-out images that {metric} could score before training have no score "
                f"now (limit {NAN_SHARE_LIMIT:.0%}): its mean and its change are those of the others. Look "
                "at the samples: the subject may be gone."
            )
    return messages


def _collapse(record: MonitorRecord) -> dict[str, str]:
    messages = {}
    ratio = record.diversity_ratio
    if ratio is not None and ratio < DIVERSITY_RATIO_LIMIT:
        messages["diversity"] = (
            f"in-group diversity is {ratio:.2f} of the base's (limit {DIVERSITY_RATIO_LIMIT:.2f}): "
            "the policy collapses to one image per prompt."
        )
    for name, shift in sorted(record.image_shift.items()):
        if abs(shift) > IMAGE_SHIFT_LIMIT:
            messages[f"image/{name}"] = (
                f"{name} moved by {shift:+.2f} standard deviations of the base's images "
                f"(limit {IMAGE_SHIFT_LIMIT:g}): look at the samples."
            )
    return messages


def _overfitting(record: MonitorRecord, first: MonitorRecord) -> dict[str, str]:
    messages = {}
    for kind in sorted(record.train_gap.keys() & first.train_gap.keys()):
        # Against the first evaluation: training and held-out rows may differ from the start.
        rise = record.train_gap[kind] - first.train_gap[kind]
        if rise > TRAIN_GAP_RISE_LIMIT:
            messages[f"train_gap/{kind}"] = (
                f"the {kind} reward runs ahead in training of what it is on held-out prompts, by {rise:.2f} "
                f"standard deviations more than at first (limit {TRAIN_GAP_RISE_LIMIT:g}): the policy learns "
                "its training rows by heart. Stop earlier or train on more subjects."
            )
    return messages
