"""Metrics and terms of a comparison; the terms were defined before any result was seen."""

from __future__ import annotations

from customized_grpo.statistics.degradation import DEFINITION

IDENTITY = "judge/identity"
PROMPT = "judge/prompt"
METRICS = (
    IDENTITY,
    PROMPT,
    "reward/identity",
    "reward/prompt",
    "monitor/copy_score",
    "monitor/background_similarity",
)
"""Held-out measures that results hold, in the order people read them."""

REFERENCE = (0.0, 0.0)
"""Corner from which hypervolume is counted: scores of 0."""

DEFINITIONS = (
    {"term": "Competitive degradation", "text": DEFINITION},
    {
        "term": "Front",
        "text": "What can be reached without the method: the base, and naive GRPO at every constant weight "
        "that was run, each by its final point (held-out identity, held-out prompt accuracy), mean "
        "over seeds. No checkpoint is picked: final means the last iteration.",
    },
    {
        "term": "Margin, cure",
        "text": "The margin of an arm is how far its final point lies outside the region that the front "
        "dominates: the smallest over the front of the larger of its two leads, below 0 inside. An "
        "arm is a cure if the 95 % interval of its margin is above 0 and none of its runs degraded.",
    },
    {
        "term": "Control",
        "text": "Each arm is compared with the arm that lacks only what it is named for. For SARS that is "
        "sars_matched: the weights and the step that SARS amounts to on average, without its "
        "shaping.",
    },
    {
        "term": "Intervals",
        "text": "95 %, for new seeds and new subjects at once, from tables of seeds x subjects. All arms "
        "share seeds, prompts and noise, so differences are paired. P-values against controls are "
        "Holm's, over all arms and both measures. Margins and hypervolumes (above 0, 0) come from "
        "2,000 joint bootstrap draws of seeds and subjects.",
    },
)
"""Terms and their meaning."""
