"""The rewards that score a benchmark, and how the scores of several become one metric.

An encoder is any reward: a registered name, with its weights after "=", or a dotted path of your own. The
benchmarks that are judged by a vision-language model ask it twice, about the subject and about the prompt:

    dreambenchpp  concept preservation and prompt following, 0 to 4 divided by 4, each the mean of
                  `JUDGE_RUNS` runs; overall the product of the two means
    omnicontext   subject consistency (SC) and prompt following (PF), scaled to 0 to 10; overall the mean
                  of sqrt(PF x SC)

The rubrics are this package's own, not the published prompts: the numbers compare models with each other, and
only loosely with published ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from customized_grpo.benchmarks.protocol import Segment
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards.base import Reward

Floats = NDArray[np.float64]

DEFAULTS = ("dino_v1", "clip_i", "clip_t")
"""DreamBench's metrics: DINO ViT-S/16, CLIP-I and CLIP-T."""

JUDGED = ("dreambenchpp", "omnicontext")
"""Benchmarks that a vision-language model scores."""

JUDGE_RUNS = 3
"""Answers per image and question for DreamBench++."""

JUDGE_SCALE = 4.0
"""The judge's scores are 0 to 4."""


@dataclass(frozen=True)
class MetricReward:
    """A reward and the metric that it measures.

    Attributes:
        metric: Name of the column; several rewards of one metric are averaged.
        reward: The reward.
        scale: Factor from the reward's scores to the metric.
    """

    metric: str
    reward: Reward
    scale: float = 1.0


@dataclass(frozen=True)
class Derived:
    """A metric computed from other metrics' means (CP x PF).

    Attributes:
        metric: Its name.
        parts: The metrics that it is computed from.
        function: Maps the parts' means [K, draws] to values [draws].
    """

    metric: str
    parts: tuple[str, ...]
    function: Callable[[Floats], Floats]


DERIVED = (Derived("cp_x_pf", ("cp", "pf"), lambda means: means[0] * means[1]),)
"""DreamBench++ multiplies the two means; a mean of products would be another number."""


def encoder_configs(given: Sequence[str], segment: Segment) -> list[RewardConfig]:
    """Return the rewards that the user named as NAME or NAME=PATH.

    Raises:
        UserError: A name is empty, or given twice: their columns could not be told apart.
    """
    configs = []
    for text in given:
        name, _, path = text.partition("=")
        if not name or ("=" in text and not path):
            raise UserError(
                f"--encoder {text!r}: write NAME or NAME=PATH", hint="For example --encoder clip_i=my/clip."
            )
        configs.append(RewardConfig(name=name, path=path or None, segment=segment))
    names = [config.name for config in configs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"--encoder {', '.join(twice)} was given twice", hint="Evaluate twice, with another --out."
        )
    return configs


@dataclass(frozen=True)
class JudgeEndpoint:
    """The address of a vision-language model.

    Attributes:
        url: Base URL of an OpenAI-compatible API.
        model: Name of the model there.
        key_env: Environment variable with the API key; None sends none.
    """

    url: str
    model: str
    key_env: str | None = None


@dataclass(frozen=True)
class MetricConfig:
    """How to build the reward of a metric.

    Attributes:
        metric: Name of the column.
        reward: Recipe of the reward.
        scale: Factor from the reward's scores to the metric.
    """

    metric: str
    reward: RewardConfig
    scale: float = 1.0


def judge_configs(benchmark: str, judge: JudgeEndpoint) -> list[MetricConfig]:
    """Return one recipe for each question to the judge and each of its runs, which differ by their seed.

    Args:
        benchmark: One of `JUDGED`.
        judge: The vision-language model.
    """
    if benchmark == "dreambenchpp":
        rubrics = {"cp": "identity", "pf": "prompt"}
        runs = JUDGE_RUNS
        scale = 1 / JUDGE_SCALE
    else:
        rubrics = {"sc": "identity", "pf": "prompt"}
        runs = 1
        scale = 10 / JUDGE_SCALE
    configs = []
    for metric, rubric in rubrics.items():
        for seed in range(runs):
            configs.append(MetricConfig(metric, _judge_config(judge, rubric, seed), scale))
    return configs


def _judge_config(judge: JudgeEndpoint, rubric: str, seed: int) -> RewardConfig:
    options: dict[str, JsonValue] = {
        "url": judge.url,
        "model": judge.model,
        "api_key_env": judge.key_env,
        "rubric": rubric,
        "seed": seed,
    }
    return RewardConfig(name="judge", segment="none", options=options)


def combine(columns: Mapping[str, list[Floats]]) -> dict[str, Floats]:
    """Return one column [N] of each metric: the mean of its encoders, and sqrt(PF x SC) where both are.

    An image that one run could not judge counts with its other runs; one that none could judge is NaN.
    """
    means = {metric: _mean_of_scored(np.stack(scores)) for metric, scores in columns.items()}
    if {"pf", "sc"} <= means.keys():
        # image by image, and averaged later: OmniContext's mean of roots, unlike the product in `DERIVED`
        means["sqrt_pf_sc"] = np.sqrt(means["pf"] * means["sc"])
    return means


def _mean_of_scored(scores: Floats) -> Floats:
    """Return means [N] of scores [K, N] over the runs that scored; NaN where none did."""
    scored = ~np.isnan(scores)
    counts = scored.sum(0)
    sums = np.where(scored, scores, 0.0).sum(0)
    # np.where computes both branches: without the maximum a division by 0 would warn
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
