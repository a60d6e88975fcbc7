"""The result of comparing existing runs in sentences that say no more than the intervals do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from customized_grpo.pages.runs_page import NAMES
from customized_grpo.statistics.crossed import SIGNIFICANT
from customized_grpo.statistics.degradation import degradation_sentence


def verdicts(results: Mapping[str, Any]) -> list[str]:
    """Return sentences on alarms, degradation, and each pair of runs, in this order.

    Args:
        results: What `existing_results.compare` returned.
    """
    sentences = []
    for run in results["runs"]:
        sentences += [f"Alarm of {run['name']}: {message}" for message in run["alarms"]]
    for run in results["runs"]:
        if run["degraded"]:
            sentences.append(f"{run['name']}: {degradation_sentence(True)}")
    sentences += [_pair(pair, results["tested"]) for pair in results["pairs"]]
    return sentences


def _pair(pair: Mapping[str, Any], tested: Sequence[str]) -> str:
    parts = []
    for metric in tested:
        if metric in pair["difference"]:
            parts.append(_measure(NAMES[metric], pair["difference"][metric]))
    if not parts:
        return f"{pair['other']} and {pair['first']} have scores of the same images in too few subjects."
    return f"{pair['other']} against {pair['first']}: {'; '.join(parts)}."


def _measure(name: str, difference: Mapping[str, float]) -> str:
    words = "no difference beyond chance"
    if difference["p_holm"] < SIGNIFICANT:
        words = "higher" if difference["mean"] > 0 else "lower"
    interval = f"{difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
    return f"{name} {interval}, {words}"
