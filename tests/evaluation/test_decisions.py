"""Decision curves of a linear Gaussian process, whose open variance is known, and what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from customized_grpo.config import Config
from customized_grpo.evaluation.decisions import Decisions, measure_decisions, premise, summarise
from customized_grpo.rewards import FunctionReward
from customized_grpo.rewards.executors import Scorer
from customized_grpo.rollout.branching import BranchPlan
from customized_grpo.rollout.encoding import PromptEncoder
from gaussian_policy import (
    EARLY,
    SIGMAS,
    ColourJudges,
    GaussianPolicy,
    green,
    open_variance,
    prompts,
    red,
    sampler,
)

Recipe = Callable[..., Config]
WEIGHTS = torch.tensor([0.7, 0.6, 0.5, 0.4, 0.3])
N_STEPS = len(SIGMAS) - 1
REWARDS = [FunctionReward("red", "prompt", red), FunctionReward("green", "identity", green)]


def measure(
    recipe: Recipe, noisy: Sequence[int], count: int, continuations: int, **changes: Any
) -> Decisions:
    policy: Any = GaussianPolicy()
    arguments: dict[str, Any] = {
        "scorer": Scorer.inline(REWARDS),
        "judges": ColourJudges(),
        "encoder": PromptEncoder(policy, (2, 2)),
        "seed": 0,
        "prompt_weights": WEIGHTS,
        "config": recipe("rollout.steps=5", "rollout.batch_size=2000").rollout,
        "plan": BranchPlan.evenly(noisy, 9, continuations, N_STEPS),
    }
    return measure_decisions(policy, sampler(), prompts(count), **arguments)


@pytest.mark.parametrize("noisy", [range(4), [1, 2]], ids=["all steps", "a window"])
def test_the_curves_are_those_of_a_linear_gaussian_process(recipe: Recipe, noisy: Sequence[int]) -> None:
    found = measure(recipe, noisy, count=60, continuations=40)
    for name, rate in (("prompt", EARLY), ("identity", 0.0)):
        expected = open_variance(rate, noisy)
        # the variance of 60 x 40 Gaussian continuations has a relative standard error of 3 %
        assert found.curves[f"judge/{name}"].open == pytest.approx(expected, rel=0.1)
        # rewards see 8 bits of an image that shows a latent 20 times smaller
        assert found.curves[f"reward/{name}"].open == pytest.approx(np.array(expected) / 400, rel=0.12)
        decided = found.curves[f"judge/{name}"]
        truth = -np.diff(expected)
        inside = (decided.decided_low <= truth) & (truth <= decided.decided_high)
        assert inside.sum() >= N_STEPS - 1
    assert found.curves["score/red"] == found.curves["reward/prompt"]
    assert not any(name.startswith("monitor/") for name in found.curves)
    assert list(found.curves)[:2] == ["judge/prompt", "judge/identity"]


def test_where_early_noise_matters_less_the_score_is_decided_later(recipe: Recipe) -> None:
    """The drift shrinks channel 0: what early steps add to it is forgotten, so identity comes first here."""
    found = measure(recipe, range(4), count=30, continuations=20)
    assert found.judge_difference is not None and found.judge_difference.high < 0
    said = premise(found)
    assert said.startswith(
        "By the held-out judges, the premise of TDW does not hold: identity is decided earlier"
    )
    assert "; by the training rewards, the premise of TDW does not hold" in said


def test_cost_is_said_before_anything_is_drawn(recipe: Recipe) -> None:
    lines: list[str] = []
    calls: list[int] = []
    policy = GaussianPolicy()

    def report(line: str) -> None:
        lines.append(line)
        calls.append(sum(samples for _, samples in policy.calls))

    plan = BranchPlan.evenly(range(4), 2, 3, N_STEPS)
    encoder = PromptEncoder(policy, (2, 2))  # type: ignore[arg-type]
    config = recipe("rollout.steps=5").rollout
    scorer = Scorer.inline(REWARDS)
    measure_decisions(
        policy,  # type: ignore[arg-type]
        sampler(),
        prompts(3),
        scorer,
        None,
        config,
        plan,
        encoder=encoder,
        seed=0,
        prompt_weights=WEIGHTS,
        report=report,
    )
    assert lines[0] == (
        "decision curves: 3 prompts x 3 continuations from 2 of 4 noisy steps: 63 forward passes of one "
        "sample, 15 images"
    )
    assert lines[1].startswith("about ") and calls[:2] == [0, 15], "trunks are drawn, then the time is known"
    assert sum(samples for _, samples in policy.calls) == 63


def test_findings_are_plain_json(recipe: Recipe) -> None:
    found = measure(recipe, range(4), count=3, continuations=2)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["premise"] == premise(found)
    assert data["curves"]["judge/prompt"]["centre"].keys() == {"mean", "low", "high"}
    assert (data["points"], data["noisy_steps"]) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert (data["prompts"], data["continuations"]) == (3, 2)


# What is said


def said(**curves: Sequence[float]) -> str:
    """The sentence about eight prompts that have these curves, at the noisy steps 0, 1 and 2 of four."""
    plan = BranchPlan.evenly(range(3), 3, 2, 4)
    growth = np.linspace(0.9, 1.1, 8)[:, None]
    tables = {name.replace("__", "/"): growth * np.array(curve) for name, curve in curves.items()}
    return premise(summarise(tables, plan, torch.linspace(1, 0, 5), WEIGHTS[:4]))


def test_the_premise_is_judged_by_the_interval_with_the_shares_at_the_step_that_counts() -> None:
    sentence = said(reward__prompt=[4.0, 0.4, 0.0], reward__identity=[4.0, 4.0, 2.8])
    assert sentence == (
        "By the training rewards, the premise of TDW holds: identity is decided later than the prompt "
        "(+0.400 [+0.400, +0.400] of the trajectory; after 1 of 4 steps 10% of the prompt's variance is "
        "open, and 100% of identity's)."
    )
    assert "cannot be told apart in time" in said(reward__prompt=[4, 2, 1], reward__identity=[4, 2, 1])


def test_the_sentence_says_what_is_missing() -> None:
    nan = [float("nan")] * 3
    assert "fewer than two prompts have a score of identity" in said(reward__prompt=[4, 2, 1])
    both = said(reward__prompt=nan, reward__identity=nan)
    assert "fewer than two prompts have a score of prompt and of identity" in both
    flat = said(reward__prompt=[0, 0, 0], reward__identity=[4, 2, 1])
    assert "continuations never differ in prompt" in flat
