"""What a run says at its end, in lines of text: its alarms first, then every reward and judge by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from customized_grpo.reporting.progress import number

SHOWN = ("score/", "judge_score/", "judge/")
"""What the metrics of rewards by name, of judges by name, and of judges by kind begin with."""

Bounds = Mapping[str, Mapping[str, float]]
"""{metric: {"mean", "low", "high"}}, low and high bounding the 95 % interval."""


def closing_lines(summary: Mapping[str, Bounds], alarms: Sequence[str]) -> list[str]:
    """Return the lines.

    Args:
        summary: "base", "tuned" and "difference" of every held-out metric; empty if none was measured.
        alarms: Messages of the alarms that the last evaluation raised.
    """
    lines = [f"alarm at the last evaluation: {message}" for message in alarms]
    metrics = [metric for metric in summary.get("base", {}) if metric.startswith(SHOWN)]
    if not metrics:
        return lines
    caveat = "; the alarms above qualify it" if alarms else ""
    lines.append(f"held-out, base -> tuned, difference with its 95 % interval{caveat}")
    width = max(len(metric) for metric in metrics)
    for metric in metrics:
        difference = summary["difference"][metric]
        interval = f"{difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
        before = number(summary["base"][metric]["mean"])
        after = number(summary["tuned"][metric]["mean"])
        lines.append(f"  {metric:<{width}}  {before} -> {after}  {interval}")
    return lines
