"""Competitive degradation: its definition, its rule and its verdict on one run, for all pages.

The identity reward that a run was trained on rises while held-out prompt accuracy falls, both beyond chance.
"""

from __future__ import annotations

REWARD = "reward/identity"
"""The metric that degradation drives up."""

JUDGE = "judge/prompt"
"""The metric that pays for it."""

DEFINITION = (
    "Of one run: on held-out prompts, the identity reward it was trained on is above the base's "
    "and the share of prompted attributes that held-out classifiers find is below the base's, "
    "both with 95 % intervals (paired, clustered by subject) that exclude 0."
)


def is_degraded(reward_low: float, judge_high: float) -> bool:
    """Return whether a run shows competitive degradation.

    Args:
        reward_low: Lower end of the 95 % interval of the change of `REWARD` against the base.
        judge_high: Upper end of the interval of the change of `JUDGE`.
    """
    return reward_low > 0 and judge_high < 0


def degradation_sentence(degraded: bool) -> str:
    """Return the verdict on one run in a sentence."""
    if degraded:
        return (
            "Competitive degradation: the identity reward rose while held-out prompt accuracy fell, "
            "both with intervals that exclude 0."
        )
    return (
        "No competitive degradation was found: that would be the identity reward up while held-out prompt "
        "accuracy falls."
    )
