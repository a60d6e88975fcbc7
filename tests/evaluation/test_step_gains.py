"""Gains along the trajectory: known exactly for a policy whose predictions are prescribed, and on ToyBox."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from customized_grpo.algorithms.samplers import SAMPLERS
from customized_grpo.config import Config
from customized_grpo.data.examples import Example
from customized_grpo.evaluation.step_gains import (
    Bounds,
    MetricGains,
    StepGains,
    measure_step_gains,
    premise,
    summarise,
)
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.rewards import FunctionReward
from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.executors import Scorer
from customized_grpo.rewards.executors.inline import InlineExecutor
from customized_grpo.rollout.batches import sample_conditioning
from customized_grpo.rollout.collect import NoiseKey, collect
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.rollout.sampler import Sampler, build_sampler, plan_steps
from customized_grpo.statistics.intervals import clustered_bootstrap

Recipe = Callable[..., Config]
SIGMAS = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
WEIGHTS = torch.tensor([0.7, 0.6, 0.4, 0.3])
# What the prescribed policy predicts before each step; the last step ends in its own prediction.
# Even numbers of 255ths: rewards see 8 bits, also of half of them.
PROMPT = [level / 255 for level in (0, 26, 102, 102)]  # gains 26 76 0 0
IDENTITY = [level / 255 for level in (52, 52, 52, 152)]  # gains 0 0 100 0
PROMPT_CENTRE, IDENTITY_CENTRE = (0.125 * 26 + 0.375 * 76) / 102, 0.625


class Prescribed:
    """A policy with linear velocity (x - target) / sigma: its prediction is the target, whatever the noise.

    Channels 0 and 1 of the target are PROMPT and IDENTITY at that step, times a factor that is the prompt's
    text; a picture shows them as its red and green.
    """

    device = torch.device("cpu")

    def encoding(self) -> AbstractContextManager[None]:
        return nullcontext()

    def encode(self, prompts: Sequence[str], references: Any, height: int, width: int) -> Conditioning:
        factor = torch.tensor([float(prompt) for prompt in prompts])
        return Conditioning({"factor": factor}, {}, height, width)

    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        return torch.stack([torch.randn(1, 3, generator=generator) for generator in generators])

    def velocity(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        step = SIGMAS.tolist().index(sigma)
        shape = torch.tensor([PROMPT[step], IDENTITY[step], 0.0])
        target = conditioning.per_sample["factor"][:, None, None] * shape
        return (x - target) / sigma

    def decode(self, x: Tensor, height: int, width: int) -> Tensor:
        return x[:, 0, :, None, None].expand(-1, -1, height, width).clamp(0, 1)


def red(batch: ScoringBatch) -> Tensor:
    return batch.images[:, 0].mean((1, 2))


def green(batch: ScoringBatch) -> Tensor:
    return batch.images[:, 1].mean((1, 2))


REWARDS = [FunctionReward("red", "prompt", red), FunctionReward("green", "identity", green)]


class SwappedJudges:
    """Judges who see the prompt where the rewards see identity, and who say something else besides."""

    def columns(self, images: Tensor, examples: Sequence[Example]) -> dict[str, Tensor]:
        means = images.mean((2, 3))
        return {"judge/prompt": means[:, 1], "judge/identity": means[:, 0], "judge/hat": means[:, 2]}


def asked(factors: Sequence[float], subjects: str) -> list[Example]:
    return [
        Example(f"row-{n}", str(factor), (), None, None, subject)
        for n, (factor, subject) in enumerate(zip(factors, subjects, strict=True))
    ]


def measure(recipe: Recipe, *overrides: str, **changes: Any) -> StepGains:
    """Measure the prescribed policy about two subjects, one of which scores half of the other."""
    policy: Any = Prescribed()
    arguments: dict[str, Any] = {
        "encoder": PromptEncoder(policy, (8, 8)),
        "examples": asked([0.5, 0.5, 1.0], "aab"),
        "scorer": Scorer.inline(REWARDS),
        "judges": None,
        "rollout_config": recipe("rollout.steps=4", *overrides).rollout,
        "group_size": 2,
        "seed": 0,
        "prompt_weights": WEIGHTS,
        **changes,
    }
    return measure_step_gains(policy, Sampler(SAMPLERS["dance"], 0.8, SIGMAS), **arguments)


# The oracle


def test_scores_gains_and_centres_are_those_of_the_prescribed_predictions(recipe: Recipe) -> None:
    gains = measure(recipe)
    factor = 2 / 3
    for metric, curve in (("reward/prompt", PROMPT), ("reward/identity", IDENTITY)):
        scores = [factor * value for value in [*curve, curve[-1]]]
        assert gains.metrics[metric].scores == pytest.approx(scores, abs=1e-5)
        assert gains.metrics[metric].gain == pytest.approx(np.diff(scores).tolist(), abs=1e-5)
    # Scores are proportional between subjects: gains differ from draw to draw, where they lie does not.
    gain = PROMPT[2] - PROMPT[1]
    interval = clustered_bootstrap([gain * 0.5] * 4 + [gain * 1.0] * 2, list("aaaabb"))
    prompt = gains.metrics["reward/prompt"]
    assert (prompt.low[1], prompt.high[1]) == pytest.approx((interval.low, interval.high), abs=1e-5)
    assert interval.high - interval.low > 0.1
    for bounds, expected in (
        (gains.metrics["reward/prompt"].centre, PROMPT_CENTRE),
        (gains.metrics["reward/identity"].centre, IDENTITY_CENTRE),
        (gains.difference, IDENTITY_CENTRE - PROMPT_CENTRE),
    ):
        assert bounds == pytest.approx((expected,) * 3, abs=1e-4)
    assert (gains.rows, gains.samples) == (3, 6)
    assert gains.sigmas == SIGMAS.tolist()
    assert gains.prompt_weights == WEIGHTS.tolist()
    assert gains.judge_difference is None


def test_judges_are_measured_besides_the_rewards(recipe: Recipe) -> None:
    gains = measure(recipe, judges=SwappedJudges())
    assert gains.metrics.keys() == {"reward/prompt", "reward/identity", "judge/prompt", "judge/identity"}
    assert gains.metrics["judge/prompt"].scores == pytest.approx(gains.metrics["reward/identity"].scores)
    assert gains.difference is not None and gains.judge_difference is not None
    assert gains.judge_difference.mean == pytest.approx(-gains.difference.mean)


def test_rewards_of_one_kind_are_averaged_by_weight(recipe: Recipe) -> None:
    both = [*REWARDS, FunctionReward("green again", "prompt", green)]
    executors = [InlineExecutor(reward) for reward in both]
    gains = measure(recipe, scorer=Scorer(executors, ["stop"] * 3, [3.0, 1.0, 1.0]))
    expected = [2 / 3 * (0.75 * p + 0.25 * i) for p, i in zip(PROMPT, IDENTITY, strict=True)]
    assert gains.metrics["reward/prompt"].scores[:4] == pytest.approx(expected, abs=1e-5)


def test_it_can_be_stopped_before_every_batch(recipe: Recipe) -> None:
    calls = []

    def before_batch() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(recipe, "rollout.batch_size=2", before_batch=before_batch)
    assert len(calls) == 3


# The samples are those of training


@pytest.fixture(scope="module")
def policy(recipe: Recipe, make_adapted: Callable[[Config], Flux1Policy]) -> Flux1Policy:
    return make_adapted(recipe())


@pytest.mark.parametrize(
    "overrides",
    [
        ["rollout.batch_size=4"],
        ["rollout.batch_size=4", "rollout.shared_noise=false", "rollout.sampler=flow", "run.seed=5"],
        ["rollout.sde_window={size: 1, shift_every: 1, start: 1}"],
    ],
    ids=" ".join,
)
def test_the_last_picture_is_the_sample_and_the_others_are_predictions_from_its_states(
    policy: Flux1Policy,
    recipe: Recipe,
    examples: list[Example],
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
) -> None:
    config = recipe(*overrides)
    seed = config.run.seed
    size = (64, 64)
    sampler = build_sampler(policy, config.rollout, *size)
    trained = collect(
        policy,
        sampler,
        examples,
        config.rollout,
        encoder=PromptEncoder(policy, size),
        group_size=3,
        plan=plan_steps(config.rollout, 1.0, 0, seed),
        noise_key=NoiseKey(seed, 0),
    )
    seen: list[Tensor] = []

    def look(batch: ScoringBatch) -> Tensor:
        seen.append(batch.images)
        return torch.zeros(len(batch))

    levels: list[float] = []
    velocity = policy.velocity

    def count(x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        levels.append(sigma)
        return velocity(x, sigma, conditioning)

    monkeypatch.setattr(policy, "velocity", count)
    scorer = Scorer.inline([FunctionReward("look", "prompt", look), REWARDS[1]])
    gains = measure_step_gains(
        policy,
        sampler,
        examples,
        scorer,
        None,
        config.rollout,
        encoder=PromptEncoder(policy, size),
        group_size=3,
        seed=seed,
        prompt_weights=WEIGHTS,
    )
    monkeypatch.undo()

    batches = -(-6 // config.rollout.batch_size)
    assert levels == sampler.sigmas[:-1].tolist() * batches, "one call of the model per step, and no more"
    of_step = [torch.cat(seen[step :: len(sampler.sigmas)]) for step in range(len(sampler.sigmas))]
    assert torch.equal(of_step[-1], (trained.images * 255).round() / 255)
    everyone = sample_conditioning(trained.conditionings, 3, slice(0, 6))
    for k, step in enumerate(trained.steps):
        with torch.no_grad():
            sigma = float(sampler.sigmas[step])
            clean = trained.x[k] - sigma * policy.velocity(trained.x[k], sigma, everyone)
            half_a_level = 0.5 / 255 + 1e-5
            assert torch.allclose(of_step[step], policy.decode(clean, *size), atol=half_a_level, rtol=0)
    assert torch.allclose(of_step[-2], of_step[-1], atol=1 / 255), "the last step ends in its own prediction"
    identity = gains.metrics["reward/identity"]
    assert identity.scores == pytest.approx([float(images[:, 1].mean()) for images in of_step], abs=1e-5)
    assert sum(identity.gain) == pytest.approx(identity.scores[-1] - identity.scores[0], abs=1e-9)
    assert torch.is_grad_enabled()


# Statistics


def table(seed: int, subjects: Sequence[str], lift: float = 1.0) -> Tensor:
    """Scores [N, 5] of four steps whose gains are `lift` on average, with an effect of the subject."""
    chance = torch.Generator().manual_seed(seed)
    effect = {name: torch.rand(4, generator=chance) for name in sorted(set(subjects))}
    noise = 0.1 * torch.randn(len(subjects), 4, generator=chance)
    gains = torch.stack([effect[name] for name in subjects]) * 2 * lift + noise
    return torch.cat([torch.zeros(len(subjects), 1), gains.cumsum(1)], 1)


def reduce(subjects: Sequence[str], **scores: Tensor) -> StepGains:
    named = {name.replace("__", "/"): values for name, values in scores.items()}
    return summarise(named, subjects, SIGMAS, WEIGHTS, rows=len(subjects))


def centre_of(gains: np.ndarray) -> float:
    mean = gains.mean(0)
    return float((mean * [0.125, 0.375, 0.625, 0.875]).sum() / mean.sum())


SUBJECTS = list("aabbbcddddeefghhh")


def test_gains_have_the_intervals_of_the_clustered_bootstrap() -> None:
    scores = table(0, SUBJECTS)
    found = reduce(SUBJECTS, reward__prompt=scores).metrics["reward/prompt"]
    for step in range(4):
        interval = clustered_bootstrap((scores[:, step + 1] - scores[:, step]).double(), SUBJECTS)
        assert (found.gain[step], found.low[step], found.high[step]) == pytest.approx(
            (interval.mean, interval.low, interval.high), abs=1e-6
        )


def test_centres_and_their_difference_are_bootstrapped_over_subjects_as_ratios_of_means() -> None:
    prompt, identity = table(1, SUBJECTS), table(2, SUBJECTS)
    found = reduce(SUBJECTS, reward__prompt=prompt, reward__identity=identity)
    gains = [scores.diff(dim=1).double().numpy() for scores in (identity, prompt)]
    rows = {name: [n for n, subject in enumerate(SUBJECTS) if subject == name] for name in set(SUBJECTS)}
    chance, names = np.random.default_rng(99), sorted(rows)
    differences, centres = [], []
    for _ in range(4000):
        drawn = [row for name in chance.choice(names, len(names)) for row in rows[name]]
        differences.append(centre_of(gains[0][drawn]) - centre_of(gains[1][drawn]))
        centres.append(centre_of(gains[1][drawn]))
    tail = 0.00572  # Phi(t(.025, 7 degrees) * sqrt(8 / 7)): what 95 % takes with 8 subjects
    for bounds, draws, value in (
        (found.metrics["reward/prompt"].centre, centres, centre_of(gains[1])),
        (found.difference, differences, centre_of(gains[0]) - centre_of(gains[1])),
    ):
        assert bounds is not None
        assert bounds.mean == pytest.approx(value, abs=1e-6)
        width = bounds.high - bounds.low
        assert width > 0.05
        low, high = np.quantile(draws, [tail, 1 - tail])
        assert (bounds.low, bounds.high) == pytest.approx((low, high), abs=0.1 * width)


def test_where_all_samples_gain_alike_a_centre_is_a_mean_with_its_clustered_interval() -> None:
    shares = torch.rand(len(SUBJECTS), 4, generator=torch.Generator().manual_seed(7)).softmax(1)
    scores = torch.cat([torch.zeros(len(SUBJECTS), 1), shares.cumsum(1)], 1)
    found = reduce(SUBJECTS, reward__prompt=scores).metrics["reward/prompt"].centre
    own = clustered_bootstrap(shares @ torch.tensor([0.125, 0.375, 0.625, 0.875]), SUBJECTS)
    assert found == pytest.approx((own.mean, own.low, own.high), abs=1e-6)


def test_more_pictures_of_the_same_subjects_do_not_narrow_an_interval() -> None:
    one = reduce(SUBJECTS, reward__prompt=table(1, SUBJECTS)).metrics["reward/prompt"]
    many = reduce(SUBJECTS * 5, reward__prompt=table(1, SUBJECTS).repeat(5, 1)).metrics["reward/prompt"]
    assert many.centre == pytest.approx(one.centre)
    assert many.low == pytest.approx(one.low)


def test_a_difference_of_what_always_moves_together_is_certain() -> None:
    scores = table(3, SUBJECTS)
    found = reduce(SUBJECTS, reward__prompt=scores, reward__identity=2 * scores)
    centre = found.metrics["reward/prompt"].centre
    assert centre is not None and centre.high - centre.low > 0.02
    assert found.difference == pytest.approx((0, 0, 0), abs=1e-6)


@pytest.mark.parametrize("lift", [0.0, -1.0], ids=["no gain", "a loss"])
def test_without_a_clear_gain_there_is_no_centre(lift: float) -> None:
    found = reduce(SUBJECTS, reward__prompt=table(0, SUBJECTS), reward__identity=table(4, SUBJECTS, lift))
    assert found.metrics["reward/identity"].centre is None
    assert found.metrics["reward/prompt"].centre is not None
    assert found.difference is None


def test_a_sample_without_all_its_scores_does_not_count_for_that_metric() -> None:
    prompt, identity = table(1, SUBJECTS), table(2, SUBJECTS)
    holed = identity.clone()
    holed[[0, 5], [2, 4]] = math.nan
    found = reduce(SUBJECTS, reward__prompt=prompt, reward__identity=holed)
    whole = [n for n in range(len(SUBJECTS)) if n not in (0, 5)]
    kept = [SUBJECTS[n] for n in whole]
    expected = reduce(kept, reward__prompt=prompt[whole], reward__identity=identity[whole])
    assert found.metrics["reward/identity"] == expected.metrics["reward/identity"]
    assert found.metrics["reward/prompt"] == reduce(SUBJECTS, reward__prompt=prompt).metrics["reward/prompt"]
    assert found.difference == expected.difference
    assert found.samples == len(SUBJECTS)


def test_a_metric_that_one_subject_has_is_left_out() -> None:
    lonely = table(0, list("aab"))
    lonely[2] = math.nan
    found = reduce(list("aab"), reward__prompt=table(1, list("aab")), reward__identity=lonely)
    assert found.metrics.keys() == {"reward/prompt"}
    assert found.difference is None


# What comes out


def test_gains_survive_json() -> None:
    found = reduce(SUBJECTS, reward__prompt=table(1, SUBJECTS), reward__identity=table(2, SUBJECTS, 0.0))
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert StepGains.from_json(data) == found
    assert data.keys() == {
        "sigmas", "samples", "rows", "prompt_weights", "metrics", "difference", "judge_difference",
    }  # fmt: skip
    assert data["metrics"]["reward/prompt"].keys() == {"scores", "gain", "low", "high", "centre"}
    assert data["metrics"]["reward/prompt"]["centre"].keys() == {"mean", "low", "high"}
    assert data["metrics"]["reward/identity"]["centre"] is None
    assert data["difference"] is None


def said(
    difference: Bounds | None, judges: Bounds | None = None, centres: Sequence[str] = (), judged: bool = False
) -> str:
    """The sentence about gains of which the metrics `centres` have a centre."""
    names = [f"{source}/{kind}" for source in ("reward", "judge") for kind in ("prompt", "identity")]
    centre = Bounds(0.5, 0.4, 0.6)
    metrics = {
        name: MetricGains([0.0, 1.0], [1.0], [1.0], [1.0], centre if name in centres else None)
        for name in names[: 4 if judged else 2]
    }
    return premise(StepGains([1.0, 0.0], 2, 2, [0.5], metrics, difference, judges))


LATER, EARLIER = Bounds(0.2, 0.1, 0.3), Bounds(-0.2, -0.3, -0.1)


def test_the_premise_is_judged_by_the_interval_and_no_stronger() -> None:
    assert "premise of TDW holds" in said(LATER) and "later" in said(LATER)
    assert "+0.200 [+0.100, +0.300]" in said(LATER)
    assert "does not hold" in said(EARLIER) and "earlier" in said(EARLIER)
    for unclear in (Bounds(0.1, -0.1, 0.3), Bounds(-0.1, -0.3, 0.1)):
        assert "cannot be told apart" in said(unclear) and "hold" not in said(unclear)


def test_the_sentence_says_which_score_does_not_rise() -> None:
    assert "the identity score does not clearly rise" in said(None, centres=["reward/prompt"])
    assert "the prompt score does not clearly rise" in said(None, centres=["reward/identity"])
    assert "neither score clearly rises" in said(None)
    empty = StepGains([1.0, 0.0], 2, 2, [0.5], {}, None, None)
    assert "fewer than two subjects" in premise(empty)


def test_judges_have_their_own_say_when_there_are_any() -> None:
    both = said(LATER, EARLIER, judged=True)
    rewards, judges = both.split("; ")
    assert "training rewards" in rewards and "TDW holds" in rewards
    assert "held-out judges" in judges and "does not hold" in judges
    assert "judges" not in said(LATER)
