"""The result of a comparison in sentences that say no more than its intervals do."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from customized_grpo.comparison.definitions import IDENTITY, PROMPT
from customized_grpo.pages.comparison_head import ALARMS_BEGIN, MIN_RUNS
from customized_grpo.statistics.crossed import SIGNIFICANT

QUALITY_NAMES = {IDENTITY: "identity", PROMPT: "prompt"}


def verdicts(
    arms: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], analysis: Mapping[str, Any]
) -> list[str]:
    """Return sentences on alarms, runs left out, degradation, cure and controls, in this order.

    Arms without finished runs are passed over.

    Args:
        arms: Entries of the plan.
        runs: Entries of `results.collect`; while some are not finished all else is called provisional.
        analysis: What `analysis.analyse` returned for them.
    """
    finished = sum(run["state"] == "finished" for run in runs)
    sentences = _alarms(arms, runs)
    if finished < len(runs):
        sentences.append(f"Provisional: {finished} of {len(runs)} runs are finished.")
    labels = {arm["name"]: arm["label"] for arm in arms}
    for run in runs:
        if run.get("left_out"):
            sentences.append(
                f"{labels[run['arm']]} with seed {run['seed']} is left out of all figures: {run['left_out']}."
            )
    roles = {arm["name"]: arm["role"] for arm in arms}
    measured = [entry for entry in analysis["arms"] if entry["final"] is not None]
    sentences += _degradation(measured, labels)
    for entry in measured:
        if roles[entry["name"]] == "method":
            sentences += _method(entry, labels)
    return sentences


def _alarms(arms: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return in how many finished runs of each arm alarms stood at the end; nothing where none did."""
    parts = []
    for arm in arms:
        ended = [run for run in runs if run["arm"] == arm["name"] and run["state"] == "finished"]
        alarmed = [run["alarms"] for run in ended if run["alarms"]]
        if alarmed:
            names = ", ".join(sorted(set(itertools.chain.from_iterable(alarmed))))
            parts.append(f"{arm['label']} in {len(alarmed)} of {len(ended)} ({names})")
    if not parts:
        return []
    return [f"{ALARMS_BEGIN}{'; '.join(parts)}. They qualify all that follows."]


def _degradation(measured: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> list[str]:
    """Return how many runs of each arm degraded, see `statistics.degradation`; nothing without judges."""
    judged = [entry for entry in measured if PROMPT in entry["final"]]
    if not judged:
        return []
    degraded = [entry for entry in judged if entry["degraded"]]
    if not degraded:
        return ["No run shows competitive degradation."]
    shares = [f"{labels[entry['name']]} in {entry['degraded']} of {entry['runs']}" for entry in degraded]
    sentence = f"Competitive degradation shows in runs of: {', '.join(shares)}."
    others = [labels[entry["name"]] for entry in judged if not entry["degraded"]]
    if others:
        sentence += f" No run of {', '.join(others)} does."
    return [sentence]


def _method(entry: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    label = labels[entry["name"]]
    sentences = []
    if entry["outside_front"] is not None:
        sentences.append(f"{label} {_cure(entry)}")
    if entry["against_control"] is not None:
        is_alone = entry["against_control"]["seeds"] < MIN_RUNS <= entry["runs"]
        note = " on one seed that both have" if is_alone else ""
        sentences.append(f"{label} {_against(entry['against_control'], labels, note)}")
    return sentences


def _cure(entry: Mapping[str, Any]) -> str:
    margin = entry["outside_front"]["margin"]
    if entry["runs"] < MIN_RUNS:
        return (
            f"was run with one seed: margin {_interval(margin)}, which is about new subjects, not new runs."
        )
    if entry["outside_front"]["seeds"] < MIN_RUNS:
        return (
            f"shares one seed with the front: margin {_interval(margin)}, which is about new subjects, "
            "not new runs."
        )
    bounds = f"(margin {_interval(margin)})"
    # The whole interval inside, then one that touches the front, then the clear case.
    if margin["high"] < 0:
        return f"lies inside the front of naive GRPO {bounds}: the base or a constant weight is better."
    if not entry["outside_front"]["outside"]:
        return f"cannot be told from the front of naive GRPO {bounds}: no cure shown."
    if entry["degraded"]:
        return f"lies outside the front of naive GRPO {bounds}, but some of its runs degraded: no cure."
    return f"is a cure: it lies outside the front of naive GRPO {bounds} and none of its runs degraded."


def _against(test: Mapping[str, Any], labels: Mapping[str, str], note: str) -> str:
    """Return the differences from a control; the note says what they are about."""
    parts = []
    for metric, name in QUALITY_NAMES.items():
        difference = test[metric]
        beyond = "beyond chance" if difference["p_holm"] < SIGNIFICANT else "not beyond chance"
        parts.append(f"{name} {_interval(difference)}, {beyond}")
    return f"against its control, {labels[test['control']]}: {'; '.join(parts)}{note}."


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
