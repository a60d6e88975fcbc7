"""What the page of a comparison says first: the alarms, then the verdict in one line and in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from customized_grpo.pages.comparison_data import ArmView, ComparisonData

ALARMS_BEGIN = "Alarms stood at the end of runs of: "
"""What the verdict on alarms begins with. The page shows the same as a box, arm by arm."""

MIN_RUNS = 2
"""Runs of an arm below which no verdict is about new runs."""


@dataclass(frozen=True)
class AlarmedArm:
    """An arm some of whose runs ended with alarms.

    Attributes:
        arm: The arm.
        runs: How many of its finished runs.
        names: The alarms, each once.
    """

    arm: ArmView
    runs: int
    names: Sequence[str]


@dataclass(frozen=True)
class Head:
    """The head of the page.

    Attributes:
        alarmed: The arms with alarms.
        alarms: All of them in a sentence; empty without any.
        verdict: Which methods are a cure, in a line; empty before a method has been measured.
        sentences: The verdicts, without the one on alarms.
    """

    alarmed: Sequence[AlarmedArm]
    alarms: str
    verdict: str
    sentences: Sequence[str]


def read_head(data: ComparisonData) -> Head:
    """Return what the page says first."""
    alarmed = _alarmed(data)
    # the box names the same arms already: the sentence is left out only where the box is shown
    sentences = [text for text in data.verdicts if not (alarmed and text.startswith(ALARMS_BEGIN))]
    return Head(alarmed, _alarms(data, alarmed), _verdict(data), sentences)


def _alarmed(data: ComparisonData) -> list[AlarmedArm]:
    alarmed = []
    for arm in data.arms:
        runs = [run["alarms"] for run in arm.finished if run.get("alarms")]
        names: set[str] = set()
        for found in runs:
            names.update(found)
        if runs:
            # sorted: each process has its own order of a set, and equal results give equal pages
            alarmed.append(AlarmedArm(arm, len(runs), sorted(names)))
    return alarmed


def _alarms(data: ComparisonData, alarmed: Sequence[AlarmedArm]) -> str:
    if not alarmed:
        return ""
    finished = sum(len(arm.finished) for arm in data.arms)
    count = sum(entry.runs for entry in alarmed)
    return f"Alarms stood at the end of {count} of {finished} runs. They qualify all that follows."


def _verdict(data: ComparisonData) -> str:
    """Return which methods are a cure, by the rule of the definitions."""
    cures: list[str] = []
    others: list[str] = []
    for arm in data.arms:
        entry = arm.result.get("outside_front")
        # by the seeds that the arm shares with the front: the draws know of no others
        if arm.role != "method" or not entry or arm.seeds_with_front < MIN_RUNS:
            continue
        is_cure = entry["outside"] and not arm.result.get("degraded")
        # exactly one list takes it: an arm that left the front but degraded is "not shown", no third class
        (cures if is_cure else others).append(arm.label)
    if not cures and not others:
        return ""
    if not cures:
        return f"No cure is shown, of: {', '.join(others)}."
    shown = f"A cure, outside all that naive GRPO reaches: {', '.join(cures)}."
    return f"{shown} Not shown for: {', '.join(others)}." if others else shown
