"""`cgrpo doctor`: load a recipe once, examine one iteration's samples, and report what is wrong with it.

The samples are those of the first iteration of training, except for the number of prompts. Nothing is
trained, and nothing is written.

Legend: P prompts, G samples each, N = P x G samples, K rewards, T denoising steps.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from customized_grpo.algorithms import conflict
from customized_grpo.algorithms.rules import Sars, SarsMatched
from customized_grpo.algorithms.sars import sars_pull
from customized_grpo.data.mixture import draw_rows
from customized_grpo.errors import UserError
from customized_grpo.evaluation.alarms import NAN_SHARE_LIMIT, ZERO_STD_SHARE_LIMIT
from customized_grpo.evaluation.decisions import Decisions
from customized_grpo.policies.out_of_memory import explained
from customized_grpo.rewards.base import HasKind
from customized_grpo.rollout.batches import repeat_examples
from customized_grpo.rollout.scoring import scoring_batch
from customized_grpo.training.algorithm import Algorithm, Draw, build_algorithm
from customized_grpo.training.calibration import calibration_file, check_calibration, refuse_calibration
from customized_grpo.training.deciding import Branching, decide, noisy_steps, usable_judges
from customized_grpo.training.graph_memory import GraphMemory
from customized_grpo.training.loss_terms import Samples
from customized_grpo.training.metrics import group_std, nan_share, signal_metrics, zero_std_share
from customized_grpo.training.notes import start_notes
from customized_grpo.training.parts import Parts, build_engine, open_parts
from customized_grpo.training.signal import LearningSignal
from customized_grpo.training.updater import ratio_tolerance

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.data.examples import Example
    from customized_grpo.policies.conditioning import Conditioning

NO_BRANCHES = (
    "when qualities are decided was not measured: with rollout.eta=0 the steps draw no noise, so all "
    "continuations are the same"
)


@dataclass(frozen=True)
class RewardHealth:
    """Statistics of one reward's scores of N samples.

    Attributes:
        name: Name of the reward.
        kind: prompt, identity or quality.
        mean: Mean score; NaN when there is none.
        group_std: Mean over the groups of the standard deviation inside them; NaN when there is none.
        zero_std_groups: Share of groups in which all samples have the same score.
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
    """The average effect of SARS, see `algorithms.sars.sars_pull`.

    Attributes:
        pull: k, which SARS adds to each weight per unit of gamma.
        gamma: The recipe's gamma.
        step_scale: Factor by which SARS lengthens the step.
        weights: (prompt weight, the constant weight that acts like it under SARS): for equal weights, and for
            the schedule's lowest and highest weight of a trained step.
    """

    pull: float
    gamma: float
    step_scale: float
    weights: list[tuple[float, float]]


@dataclass(frozen=True)
class Problem:
    """Something to act on before training.

    Attributes:
        problem: What is wrong.
        fix: What to do about it.
    """

    problem: str
    fix: str


@dataclass(frozen=True)
class Diagnosis:
    """The doctor's findings.

    Attributes:
        algorithm: Of the recipe: grpo, nft or awm.
        prompts: P.
        samples: N.
        rewards: Health of each reward, in the recipe's order.
        rho: Correlation of the prompt and the identity reward inside groups; NaN if one never varies, or
            there are not both.
        conflict: Share of samples whose two advantages have opposite signs; NaN where rho is.
        conflict_null: The share that Gaussian rewards of correlation rho have, arccos(rho) / pi.
        sars: None for a rule that is not SARS, groups of fewer than 4, or rho that is NaN, 1 or -1.
        ratio_deviation: Largest |ratio - 1| of training's first pass; None for an algorithm without ratios,
            or when no sample can be trained on.
        ratio_tolerance: What is still round-off.
        decisions: At which denoising steps each score is decided; None if that was not asked for.
        calibration: The content of a file for the schedule `calibrated`; None if that was not asked for, or
            nothing could be calibrated.
        problems: Empty for a healthy recipe.
        notes: A sentence each on rows, settings without effect, prompts that are cut.
    """

    algorithm: str
    prompts: int
    samples: int
    rewards: list[RewardHealth]
    rho: float
    conflict: float
    conflict_null: float
    sars: SarsWorth | None
    ratio_deviation: float | None
    ratio_tolerance: float
    decisions: Decisions | None
    calibration: dict[str, Any] | None
    problems: list[Problem]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON (NaN becomes null), without the calibration, which has a file of its own."""
        decisions = None if self.decisions is None else self.decisions.to_json()
        result: dict[str, Any] = _without_nan({**asdict(self), "decisions": decisions})
        del result["calibration"]
        return result


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def diagnose(config: Config, prompts: int, branching: Branching) -> Diagnosis:
    """Load everything, draw and score the samples of some training prompts, and examine them.

    Args:
        config: The recipe.
        prompts: P; all rows when the recipe has fewer.
        branching: How finely decision curves are measured; its prompts too are no more than the rows.

    Raises:
        UserError: Something cannot be loaded or scored at all, or does not fit the schedule `calibrated`.
    """
    if branching.calibrates is not None:
        refuse_calibration(config)
    with open_parts(config, build_engine(config)) as parts:
        check_calibration(config, parts.sampler.sigmas)
        n_rows = len(parts.data.train)
        # one draw for both: the shorter list is the beginning of the longer
        count = max(prompts, branching.n_prompts)
        rows = draw_rows(parts.data.train, 0, min(count, n_rows), config.run.seed)
        batches = {
            "train.micro_batch_size": config.train.micro_batch_size,
            "rollout.batch_size": config.rollout.batch_size,
        }
        with explained(config.model, batches):
            examples = [parts.data.train[row] for row in rows]
            return _diagnose(parts, examples[:prompts], examples[: branching.n_prompts], branching)


def _diagnose(
    parts: Parts, examples: Sequence[Example], branched: Sequence[Example], branching: Branching
) -> Diagnosis:
    config = parts.config
    group_size = config.train.group_size
    algorithm = _one_update(parts)
    # Exactly what training would draw first, so that its numbers are those of the first iteration.
    samples = _first_rollout(parts, algorithm, examples)
    scores = parts.scorer.collect()
    signal = LearningSignal.from_scores(config, parts.scorer.rewards, scores, iteration=0)
    deviation = _first_pass_deviation(algorithm, samples, signal)
    tolerance = ratio_tolerance(config)
    graph_memory = GraphMemory(parts)
    graph_memory.decide(*_prompts_of_an_iteration(parts, samples))
    judges, judge_notes = usable_judges(parts, branched)
    decisions = None
    groupwise = [reward.name for reward in parts.scorer.rewards if reward.groupwise]
    if groupwise:
        judge_notes = [*judge_notes, _no_decisions(groupwise, branching)]
    elif branching.n_points and not noisy_steps(config):
        judge_notes = [*judge_notes, NO_BRANCHES]
    elif branching.n_points:
        decisions = decide(parts, branched, judges, branching, signal.weights)
    calibration = None
    if branching.calibrates is not None and decisions is not None:
        calibration = calibration_file(parts, branching.calibrates, decisions, branched, judges)
    health = reward_health(parts.scorer.rewards, signal, group_size)
    metrics = signal_metrics(signal, group_size)
    rho = metrics.get("advantage/rho", math.nan)
    return Diagnosis(
        algorithm=config.train.algorithm,
        prompts=len(examples),
        samples=len(scores),
        rewards=health,
        rho=rho,
        conflict=metrics.get("advantage/conflict", math.nan),
        conflict_null=metrics.get("advantage/conflict_null", math.nan),
        sars=sars_worth(config, rho, signal.weights),
        ratio_deviation=deviation,
        ratio_tolerance=tolerance,
        decisions=decisions,
        calibration=calibration,
        problems=[
            *reward_problems(health),
            *ratio_problems(deviation, tolerance),
        ],
        notes=[
            *parts.data.notes,
            *judge_notes,
            *(sentence for _, sentence in start_notes(parts)),
            graph_memory.sentence,
        ],
    )


def _no_decisions(groupwise: Sequence[str], branching: Branching) -> str:
    """Return why nothing is said about when qualities are decided.

    Raises:
        UserError: A calibration was asked for, which needs it.
    """
    reason = (
        f"when each quality is decided was not measured: {', '.join(groupwise)} compares the images of a "
        "group, and continuations are scored one by one"
    )
    if branching.calibrates is not None:
        raise UserError(reason, hint="Leave the groupwise reward out for the calibration.")
    return reason


def _first_rollout(parts: Parts, algorithm: Algorithm[Any], examples: Sequence[Example]) -> Samples:
    """Draw the samples of training's first iteration, and hand each batch of images to the rewards."""
    example_of_sample = repeat_examples(examples, parts.config.train.group_size)

    def submit(samples: slice, images: Tensor) -> None:
        parts.scorer.submit(scoring_batch(images, example_of_sample[samples]), parts.config.train.group_size)

    drawn: Samples = algorithm.draw(Draw(examples, iteration=0, on_batch=submit))
    return drawn


def _prompts_of_an_iteration(parts: Parts, samples: Samples) -> tuple[list[Hashable], list[Conditioning]]:
    """Return bucket and conditioning of as many prompts as a training iteration has, those drawn in turn."""
    buckets = []
    conditionings = []
    for number in range(parts.config.train.prompts_per_iteration // parts.engine.world_size):
        # prompt of an iteration -> one of those drawn here, which may be fewer
        prompt = number % len(samples.buckets)
        buckets.append(samples.buckets[prompt])
        conditionings.append(samples.conditionings[prompt])
    return buckets, conditionings


def _one_update(parts: Parts) -> Algorithm[Any]:
    """Return the recipe's algorithm with one update for all samples, which may be too few for several."""
    train = parts.config.train.model_copy(update={"updates_per_iteration": 1})
    config = parts.config.model_copy(update={"train": train})
    return build_algorithm(replace(parts, config=config), parts.engine.partition(updates=1))


def _first_pass_deviation(
    algorithm: Algorithm[Any], samples: Samples, signal: LearningSignal
) -> float | None:
    """Return the largest |ratio - 1| before any update, NaN if a ratio is; None without any ratio.

    The loss is computed with gradients, as in training, because without them a kernel may round differently.
    """
    ratios: list[Tensor] = []
    for term in algorithm.loss.terms(samples, signal, update=0):
        if term.ratio is not None:
            ratios.append(term.ratio.detach())  # the graph of the term is freed at once
    return float((torch.cat(ratios) - 1).abs().max()) if ratios else None


# Findings


def reward_health(rewards: Sequence[HasKind], signal: LearningSignal, group_size: int) -> list[RewardHealth]:
    """Return statistics of each reward's scores, over the samples whose rows chose it."""
    scores = signal.scores
    spread = group_std(scores, group_size)
    zero = zero_std_share(scores, signal.asked, group_size)
    missing = nan_share(scores, signal.asked)
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
    """Return the average effect of the recipe's SARS; None where it has none in this form.

    Args:
        config: The recipe.
        rho: Correlation of the two rewards inside groups.
        weights: Prompt weights of the schedule [T].
    """
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
    problems = []
    for reward in rewards:
        if reward.nan_samples > NAN_SHARE_LIMIT:
            problems.append(
                Problem(
                    f"reward {reward.name!r} could not score {reward.nan_samples:.0%} of the samples",
                    "let it return a finite number for every image, or leave out the rows that it cannot "
                    "judge: samples without a score are not trained on",
                )
            )
        elif reward.zero_std_groups > ZERO_STD_SHARE_LIMIT:
            problems.append(
                Problem(
                    f"reward {reward.name!r} gives all samples of a prompt the same score in "
                    f"{reward.zero_std_groups:.0%} of the groups, which teaches nothing",
                    "take a reward that tells images of one prompt apart, or let the samples differ more: "
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
