"""The promises of the alarms."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from customized_grpo.evaluation.alarms import PATIENCE, Alarm, MonitorRecord, check_alarms
from customized_grpo.statistics.intervals import Interval


def interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, level=0.95, rows=100, clusters=10)


HEALTHY = MonitorRecord(
    iteration=10,
    copy_change=interval(-0.1, 0.05),
    background_change=interval(-0.02, 0.02),
    proxy_change={"identity": interval(0.1, 0.2), "prompt": interval(0.1, 0.2)},
    held_out_change={"identity": interval(0.01, 0.1), "prompt": interval(-0.1, 0.1)},
    zero_std_share={"identity": 0.5, "prompt": 0.0},
    nan_share={"identity": 0.05, "prompt": 0.0},
    lost_share={"judge/identity": 0.05},
    diversity_ratio=0.5,
    image_shift={"saturation": 1.0, "edge_density": -1.0},
    train_gap={"prompt": 1.0, "identity": 0.0},
)


def lasting_alarms(*records: MonitorRecord) -> list[Alarm]:
    """Return the alarms when the last record is repeated until patience is over."""
    last = records[-1]
    repeated = [replace(last, iteration=last.iteration + number) for number in range(1, PATIENCE)]
    return check_alarms([*records, *repeated])


UNHEALTHY: list[tuple[str, dict[str, Any], str]] = [
    ("copy_score", {"copy_change": interval(0.01, 0.1)}, "copy_score rose by 0.055 [0.010, 0.100]"),
    ("background_similarity", {"background_change": interval(0.01, 0.1)}, "background_similarity rose"),
    (
        "held_out/identity",
        {"held_out_change": {"identity": interval(-0.2, -0.1)}},
        "fell by 0.150 [0.100, 0.200] while the identity reward rose by 0.150 [0.100, 0.200]",
    ),
    (
        "degraded/prompt",
        {
            "proxy_change": {"prompt": interval(-0.2, -0.1)},
            "held_out_change": {"prompt": interval(-0.2, -0.1)},
        },
        "fell by 0.150 [0.100, 0.200]: the policy trades prompt away",
    ),
    ("zero_std/prompt", {"zero_std_share": {"identity": 0.2, "prompt": 0.51}}, "51% of the groups"),
    ("nan/identity", {"nan_share": {"identity": 0.06}}, "6% of the samples"),
    (
        "lost/judge/identity",
        {"lost_share": {"judge/identity": 0.25}},
        "25% of the held-out images that judge/identity could score before training have no score now",
    ),
    ("diversity", {"diversity_ratio": 0.49}, "0.49 of the base's"),
    ("train_gap/prompt", {"train_gap": {"prompt": 1.6, "identity": 0.1}}, "by 0.60 standard deviations"),
    ("image/edge_density", {"image_shift": {"edge_density": -1.5, "saturation": 0.0}}, "moved by -1.50"),
]


def test_a_healthy_run_and_an_unmeasured_one_raise_nothing() -> None:
    assert lasting_alarms(HEALTHY) == []
    assert lasting_alarms(MonitorRecord(iteration=1)) == []
    assert check_alarms([]) == []


@pytest.mark.parametrize(("name", "changes", "message"), UNHEALTHY, ids=[case[0] for case in UNHEALTHY])
def test_each_alarm_names_what_moved_and_by_how_much(
    name: str, changes: dict[str, Any], message: str
) -> None:
    alarms = lasting_alarms(HEALTHY, replace(HEALTHY, iteration=20, **changes))
    assert [alarm.name for alarm in alarms] == [name]
    assert message in alarms[0].message and alarms[0].iteration == 20 + PATIENCE - 1


def test_all_alarms_stand_together() -> None:
    changes: dict[str, Any] = {}
    for _, change, _ in UNHEALTHY:
        for key, value in change.items():
            changes[key] = {**changes.get(key, {}), **value} if isinstance(value, dict) else value
    changes["proxy_change"] = {"identity": interval(0.1, 0.2), "prompt": interval(-0.2, -0.1)}
    alarms = lasting_alarms(HEALTHY, replace(HEALTHY, iteration=20, **changes))
    assert sorted(alarm.name for alarm in alarms) == sorted(name for name, _, _ in UNHEALTHY)


def test_the_lead_of_training_counts_from_the_first_evaluation() -> None:
    leading = [replace(HEALTHY, iteration=i, train_gap={"prompt": 3.0}) for i in (10, 20, 30)]
    assert check_alarms(leading) == []


def test_an_alarm_needs_patience_in_a_row_up_to_the_last_record() -> None:
    bad = replace(HEALTHY, diversity_ratio=0.1)

    def names(*records: MonitorRecord) -> list[str]:
        history = [replace(record, iteration=i) for i, record in enumerate(records)]
        return [alarm.name for alarm in check_alarms(history)]

    assert names(bad) == []
    assert names(HEALTHY, bad) == []
    assert names(bad, HEALTHY, bad) == []
    assert names(bad, bad, HEALTHY) == []
    assert names(HEALTHY, bad, bad) == ["diversity"]


def test_history_out_of_order_is_an_error() -> None:
    for iterations in ([2, 1], [1, 1]):
        with pytest.raises(ValueError, match="ascending"):
            check_alarms([MonitorRecord(i) for i in iterations])


def test_alarms_and_statistics_do_not_import_torch() -> None:
    code = "import sys, customized_grpo.evaluation.alarms; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
