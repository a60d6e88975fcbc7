"""`cgrpo doctor`: load a recipe once, look at one iteration's samples, and say what is wrong with it.

The samples are those of the first iteration of training, but for the number of prompts. Nothing is trained,
and nothing is written.

Legend: P prompts, G samples each, N = P x G samples, K rewards, T denoising steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from customized_grpo.algorithms import advantages as adv
from customized_grpo.algorithms import conflict
from customized_grpo.algorithms.rules import Sars, SarsMatched
from customized_grpo.algorithms.sars import sars_pull
from customized_grpo.data.sampler import prompt_indices
from customized_grpo.engine.engine import Engine
from customized_grpo.evaluation.alarms import Thresholds
from customized_grpo.evaluation.held_out import scoring_batch
from customized_grpo.evaluation.step_gains import StepGains, measure_step_gains, premise
from customized_grpo.rewards.base import HasKind
from customized_grpo.rollout import collect as rollout
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.statistics import monitors
from customized_grpo.training import parts as components
from customized_grpo.training.signal import LearningSignal
from customized_grpo.training.updater import RATIO_TOLERANCE, Updater

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.rollout.collect import Trajectory


@dataclass(frozen=True)
class RewardHealth:
    """What one reward says of N samples.

    Attributes:
        name: Of the reward.
        kind: prompt, identity or quality.
        mean: Mean score; NaN when there is none.
        group_std: Mean over the groups of the standard deviation inside them; NaN likewise.
        zero_std_groups: Share of groups in which it tells no sample from another.
        nan_samples: Share of samples that it could not score.
    """

    name: str
    kind: str
    mean: float
    group_std: float
    zero_std_groups: float
    nan_samples: float


@dataclass(frozen=True)
class SarsWorth:
    """What SARS amounts to on average, see `algorithms.sars.sars_pull`.

    Attributes:
        pull: k, what SARS adds to each weight per unit of gamma.
        gamma: The recipe's.
        step_scale: How much longer SARS makes the step.
        weights: (prompt weight, the constant weight that acts like it under SARS): of equal weights, and of
            the schedule's lowest and highest weight of a trained step.
    """

    pull: float
    gamma: float
    step_scale: float
    weights: list[tuple[float, float]]


@dataclass(frozen=True)
class Problem:
    """Something to act on before training."""

    problem: str
    fix: str


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found.

    Attributes:
        prompts: P.
        samples: N.
        rewards: Health of each reward, in the recipe's order.
        rho: Correlation of the prompt and the identity reward inside groups; NaN if one never varies.
        conflict: Share of samples whose two advantages have opposite signs.
        conflict_null: The share that Gaussian rewards of correlation rho have, arccos(rho) / pi.
        sars: None for a rule that is not SARS, groups of fewer than 4, or rho that is NaN, 1 or -1.
        ratio_deviation: Largest |ratio - 1| of training's first pass; None when no sample can be trained on.
        ratio_tolerance: What is still round-off.
        step_gains: When scores arise in denoising.
        premise: What that says of TDW's premise, in a sentence.
        problems: What to act on; empty for a healthy recipe.
    """

    prompts: int
    samples: int
    rewards: list[RewardHealth]
    rho: float
    conflict: float
    conflict_null: float
    sars: SarsWorth | None
    ratio_deviation: float | None
    ratio_tolerance: float
    step_gains: StepGains
    premise: str
    problems: list[Problem]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON (NaN becomes null)."""
        result: dict[str, Any] = _without_nan({**asdict(self), "step_gains": self.step_gains.to_json()})
        return result


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def diagnose(config: Config, prompts: int) -> Diagnosis:
    """Load everything, draw and score the samples of `prompts` training prompts, and look at them.

    Args:
        config: The recipe.
        prompts: P; all rows when the recipe has fewer.

    Raises:
        UserError: Something cannot be loaded or scored at all.
    """
    parts = _Parts(config, prompts)
    with parts.scorer:
        return _diagnose(config, parts)


def _diagnose(config: Config, parts: _Parts) -> Diagnosis:
    group_size = config.train.group_size
    trajectory = parts.collect()
    scores = parts.scorer.collect()
    signal = LearningSignal.of(config, parts.scorer.rewards, scores, iteration=0)
    first_pass = parts.first_pass()
    deviation = first_pass.deviation(trajectory, signal)
    gains = parts.step_gains(signal.weights)
    health = reward_health(parts.scorer.rewards, scores, group_size)
    rho = monitors.reward_correlation(signal.rewards, group_size)
    return Diagnosis(
        prompts=len(parts.examples),
        samples=len(scores),
        rewards=health,
        rho=rho,
        conflict=conflict.quadrants(signal.advantages)["conflict"],
        conflict_null=math.nan if math.isnan(rho) else conflict.conflict_null(rho),
        sars=sars_worth(config, rho, signal.weights),
        ratio_deviation=deviation,
        ratio_tolerance=first_pass.tolerance,
        step_gains=gains,
        premise=premise(gains),
        problems=[
            *reward_problems(health),
            *ratio_problems(deviation, first_pass.tolerance),
            *data_problems(config.train.prompts_per_iteration, len(parts.data.train)),
        ],
    )


class _Parts:
    """What a training run is made of, and the prompts to look at."""

    def __init__(self, config: Config, prompts: int) -> None:
        self.config = config
        self.data = components.build_data(config)
        self.scorer = components.build_scorer(config)
        self.policy = components.build_policy(config)
        self.encode = PromptEncoder.of(config, self.policy)
        self.sampler = rollout.build_sampler(self.policy, config.rollout, *self.encode.size)
        rows = len(self.data.train)
        chosen = prompt_indices(rows, min(prompts, rows), 0, config.run.seed)
        self.examples = [self.data.train[row] for row in chosen]
        self.per_sample = [example for example in self.examples for _ in range(config.train.group_size)]

    def collect(self) -> Trajectory:
        """Draw the samples of training's first iteration, and hand each batch to the rewards."""
        config = self.config
        return rollout.collect(
            self.policy,
            self.sampler,
            self.examples,
            config.rollout,
            encode=self.encode,
            group_size=config.train.group_size,
            plan=rollout.step_plan(config.rollout, config.train.trained_fraction, 0, config.run.seed),
            seeds=(config.run.seed, 0),
            keep_means=config.train.ratio_normalisation,
            drawn=lambda rows, images: self.scorer.submit(scoring_batch(images, self.per_sample[rows])),
        )

    def first_pass(self) -> _FirstPass:
        """Return training's updater."""
        config, policy = self.config, self.policy
        return _FirstPass(
            policy,
            self.sampler,
            Engine(policy.device),
            config.train,
            config.advantage,
            config.model.precision,
        )

    def step_gains(self, prompt_weights: Tensor) -> StepGains:
        """Draw the same samples again and score them at every step."""
        config = self.config
        return measure_step_gains(
            self.policy,
            self.sampler,
            self.examples,
            self.scorer,
            self.data.judges,
            config.rollout,
            encode=self.encode,
            group_size=config.train.group_size,
            reward_weights=[reward.weight for reward in config.rewards],
            seed=config.run.seed,
            prompt_weights=prompt_weights,
        )


class _FirstPass(Updater):
    """The updater up to its loss: no gradient is taken, and no step."""

    @property
    def tolerance(self) -> float:
        """Largest deviation from ratio 1 that is round-off."""
        return RATIO_TOLERANCE[self.precision]

    def deviation(self, trajectory: Trajectory, signal: LearningSignal) -> float | None:
        """Return the largest |ratio - 1| before any update, NaN if a ratio is; None without valid samples."""
        ratios = [
            result.ratio.detach()
            for update in range(self.train.updates_per_iteration)
            for _, result, _ in self._losses(trajectory, signal, update)
        ]
        return float((torch.cat(ratios) - 1).abs().max()) if ratios else None


# Findings


def reward_health(rewards: Sequence[HasKind], scores: Tensor, group_size: int) -> list[RewardHealth]:
    """Return what each reward's scores [N, K] are like, groups being consecutive rows."""
    spread = scores.reshape(-1, group_size, len(rewards)).std(1).nanmean(0)
    zero, missing = monitors.zero_std_share(scores, group_size), monitors.nan_share(scores)
    return [
        RewardHealth(
            name=reward.name,
            kind=reward.kind,
            mean=float(scores[:, k].nanmean()),
            group_std=float(spread[k]),
            zero_std_groups=float(zero[k]),
            nan_samples=float(missing[k]),
        )
        for k, reward in enumerate(rewards)
    ]


def sars_worth(config: Config, rho: float, weights: Tensor) -> SarsWorth | None:
    """Return what the recipe's SARS amounts to at correlation rho; weights [T] are the schedule's."""
    rule = config.advantage.build()
    group_size = config.train.group_size
    # SARS and what derives from it: their mean gradient is the one that matched_constant_weights describes.
    if not isinstance(rule, Sars) or group_size < SarsMatched.min_group_size or not -1 < rho < 1:
        return None
    gamma = rule.gamma
    trained = weights[:-1]  # the last step never is
    matched = [
        (weight, conflict.matched_constant_weights(weight, gamma, rho, group_size))
        for weight in (0.5, float(trained.min()), float(trained.max()))
    ]
    return SarsWorth(
        pull=sars_pull(rho, group_size),
        gamma=gamma,
        step_scale=matched[0][1].step_scale,
        weights=[(weight, constant.prompt) for weight, constant in matched],
    )


def reward_problems(rewards: Sequence[RewardHealth]) -> list[Problem]:
    """Return the rewards that training could not learn from; the limits are those of the alarms."""
    limit, problems = Thresholds(), []
    for reward in rewards:
        if reward.kind not in adv.KINDS:
            continue
        if reward.nan_samples > limit.nan_share:
            problems.append(
                Problem(
                    f"reward {reward.name!r} could not score {reward.nan_samples:.0%} of the samples",
                    "let it return a finite number for every picture, or leave out the rows that it cannot "
                    "judge: samples without a score are not trained on",
                )
            )
        elif reward.zero_std_groups > limit.zero_std_share:
            problems.append(
                Problem(
                    f"reward {reward.name!r} gives all samples of a prompt the same score in "
                    f"{reward.zero_std_groups:.0%} of the groups, which teaches nothing",
                    "take a reward that tells pictures of one prompt apart, or let the samples differ more: "
                    "raise rollout.eta, use harder prompts",
                )
            )
    return problems


def ratio_problems(deviation: float | None, tolerance: float) -> list[Problem]:
    """Return the problem of a policy that computes other transitions in training than in the rollout."""
    if deviation is None or deviation <= tolerance:
        return []
    return [
        Problem(
            f"the ratio of the first pass deviates from 1 by {deviation:.1e} (limit {tolerance:.0e}): "
            "rollout and training do not compute the same transition",
            "set train.micro_batch_size equal to rollout.batch_size, or model.precision=fp32",
        )
    ]


def data_problems(per_iteration: int, rows: int) -> list[Problem]:
    """Return the problem of an iteration that holds a prompt twice: equal prompts get equal noise."""
    if per_iteration <= rows:
        return []
    return [
        Problem(
            f"train.prompts_per_iteration={per_iteration}, but there are {rows} training rows: "
            "an iteration would draw the very same samples twice",
            f"add rows, or set train.prompts_per_iteration to {rows} or less",
        )
    ]
