"""Which encoders judge a benchmark, and how several of them become one number.

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

from customized_grpo.benchmarks.protocol import Segment
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards.base import Reward

Floats = NDArray[np.float64]

DEFAULTS = ("dino_v1", "clip_i", "clip_t")
"""DreamBench's metrics: DINO ViT-S/16, CLIP-I and CLIP-T."""

JUDGED = ("dreambenchpp", "omnicontext")
JUDGE_RUNS = 3
JUDGE_SCALE = 4.0  # the judge's scores are 0 to 4


@dataclass(frozen=True)
class Encoder:
    """A reward under the name of its metric.

    Attributes:
        metric: Name of the column; several encoders of one metric are averaged.
        reward: What scores.
        scale: Factor from the reward's scores to the metric.
    """

    metric: str
    reward: Reward
    scale: float = 1.0


@dataclass(frozen=True)
class Derived:
    """A number made of the means of others.

    Attributes:
        metric: Its name.
        parts: The metrics it is made of.
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
                f"--encoder {text!r}: write NAME or NAME=PATH", "For example --encoder clip_i=my/clip."
            )
        configs.append(RewardConfig(name=name, path=path or None, segment=segment))
    names = [config.name for config in configs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"--encoder {', '.join(twice)} was given twice", "Evaluate twice, with another --out."
        )
    return configs


@dataclass(frozen=True)
class JudgeEndpoint:
    """Where a vision-language model answers.

    Attributes:
        url: Of an OpenAI-compatible API.
        model: Name of the model there.
        key_env: Environment variable with the API key; None sends none.
    """

    url: str
    model: str
    key_env: str | None = None


def judge_configs(benchmark: str, judge: JudgeEndpoint) -> list[tuple[str, float, RewardConfig]]:
    """Return (metric, scale, reward) of each question to the judge, runs apart by their seed.

    Args:
        benchmark: One of `JUDGED`.
        judge: Who is asked.
    """
    if benchmark == "dreambenchpp":
        questions, runs, scale = {"cp": "identity", "pf": "prompt"}, JUDGE_RUNS, 1 / JUDGE_SCALE
    else:
        questions, runs, scale = {"sc": "identity", "pf": "prompt"}, 1, 10 / JUDGE_SCALE
    return [
        (
            metric,
            scale,
            RewardConfig(
                name="judge",
                segment="none",
                options={
                    "url": judge.url,
                    "model": judge.model,
                    "api_key_env": judge.key_env,
                    "rubric": rubric,
                    "seed": run,
                },
            ),
        )
        for metric, rubric in questions.items()
        for run in range(runs)
    ]


def combine(columns: Mapping[str, list[Floats]]) -> dict[str, Floats]:
    """Return one column [N] of each metric: the mean of its encoders, and sqrt(PF x SC) where both are.

    A picture that one run could not judge counts with its other runs; one that none could is NaN.
    """
    means = {metric: _mean_of_scored(np.stack(found)) for metric, found in columns.items()}
    if {"pf", "sc"} <= means.keys():
        means["sqrt_pf_sc"] = np.sqrt(means["pf"] * means["sc"])
    return means


def _mean_of_scored(scores: Floats) -> Floats:
    """Return means [N] of scores [K, N] over what is not NaN; NaN where nothing is."""
    scored = ~np.isnan(scores)
    counts = scored.sum(0)
    sums = np.where(scored, scores, 0.0).sum(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
