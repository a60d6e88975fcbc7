"""The result of a run in sentences: alarms first, then what the intervals show, and no more than they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from customized_grpo.kinds import KINDS
from customized_grpo.pages.plots.numbers import Measurement, interval_text, number
from customized_grpo.pages.run_data import RunData
from customized_grpo.statistics import degradation

QUALITIES = (
    ("judge/identity", "Held-out identity"),
    ("judge/prompt", "Held-out prompt accuracy"),
    ("judge/quality", "Held-out quality"),
)
"""(metric, name) of what a run is judged by; the rest are monitors."""


@dataclass(frozen=True)
class Alarms:
    """The alarms of a run.

    Attributes:
        standing: Messages of those that the latest evaluation raised.
        earlier: (iteration, message) of the last of each kind that it did not raise any more.
    """

    standing: Sequence[str]
    earlier: Sequence[tuple[int, str]]


def alarms(run: RunData) -> Alarms:
    """Return the alarms of a run; an alarm that lasts counts once, with its latest message."""
    latest = run.evals[-1]["iteration"] if run.evals else None
    last_of_kind: dict[str, tuple[int, str]] = {}
    for event in run.events:
        if event.get("event") == "alarm":
            message = str(event.get("message", ""))
            # by kind: an alarm that lasts has another number in its message each time
            last_of_kind[str(event.get("alarm", message))] = (int(event["iteration"] or 0), message)
    standing = [message for iteration, message in last_of_kind.values() if iteration == latest]
    earlier = [entry for entry in last_of_kind.values() if entry[0] != latest]
    return Alarms(standing, earlier)


def findings(run: RunData) -> list[str]:
    """Return the result in sentences that do not say more than the intervals do; alarms stand above them."""
    sentences = []
    for metric, name in QUALITIES:
        comparison = run.comparisons.get(metric)
        if comparison is not None:
            sentences.append(_sentence(name, comparison.difference))
    kinds = trained_kinds(run)
    quality = run.comparisons.get("reward/quality")
    if quality is not None and "judge/quality" not in run.comparisons:
        sentences.append(_sentence("The quality reward on held-out prompts", quality.difference))
    return sentences + _degradation(run, kinds)


def trained_kinds(run: RunData) -> list[str]:
    """Return the kinds of the run's rewards, as far as it has measured any."""
    names: set[str] = set()
    for record in [*run.train, *run.evals]:
        # from what was measured: a recipe names its rewards, and only their code knows the kinds
        names |= record.keys()
    return [kind for kind in KINDS if f"reward/{kind}" in names]


def _sentence(name: str, difference: Measurement) -> str:
    size = number(difference.mean, plus=True)
    if difference.verdict == "no interval":
        return f"{name} stands at {size} against the base so far; no paired interval has been computed yet."
    words = {"up": "rose by", "down": "fell by"}.get(difference.verdict)
    span = f"(95 % interval {interval_text(difference, plus=True)})"
    if words is None:
        return f"{name} cannot be told from the base: {size} {span}."
    # the words say the sign already
    if difference.verdict == "down" and difference.low is not None and difference.high is not None:
        # a fall is a size, and so are the ends of its interval
        fall = Measurement(-difference.mean, -difference.high, -difference.low)
        return f"{name} {words} {number(fall.mean)} (95 % interval {interval_text(fall)})."
    return f"{name} {words} {number(difference.mean)} {span}."


def _degradation(run: RunData, kinds: Sequence[str]) -> list[str]:
    """Return the verdict on competitive degradation; nothing where it was not measured with intervals."""
    alone: list[str] = []
    if len(kinds) == 1:
        alone = [
            f"Every reward was of kind {kinds[0]} (plain GRPO): "
            "there is no second quality in training that could degrade."
        ]
    reward = run.comparisons.get(degradation.REWARD)
    judge = run.comparisons.get(degradation.JUDGE)
    if reward is None or judge is None:
        return alone
    # the evaluations of a run that is not finished are not paired, and have no interval
    if reward.difference.low is None or judge.difference.high is None:
        return alone
    degraded = degradation.is_degraded(reward.difference.low, judge.difference.high)
    # with one kind alone "no degradation" would be said of something that nobody trained
    return [*alone, degradation.degradation_sentence(degraded)] if degraded or not alone else alone
