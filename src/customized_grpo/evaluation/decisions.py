"""When each score is decided: the premise of TDW, measured by branching.

TDW weights the prompt early and identity late, on the premise that this is when each is decided. From the
states of a sample several continuations are drawn with the recipe's own sampler (`rollout.branching`), and
the variance of a score among them is what is still open (`statistics.decisions`).

Steps outside the noise window of the first iteration draw no noise, as in training, and decide nothing. The
initial noise is one for all continuations: where the recipe does not share it in a group, what it decides is
no step's and is not counted.

Legend: P prompts, K continuations, I branch points, T steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from customized_grpo.evaluation.held_out import Judges, score_columns
from customized_grpo.kinds import PAIR
from customized_grpo.reporting.progress import duration
from customized_grpo.rollout.batches import repeat_examples, sample_batches
from customized_grpo.rollout.branching import BranchPlan, Trunks, draw_branches, draw_trunks
from customized_grpo.rollout.collect import NoiseKey
from customized_grpo.rollout.sampler import Sampler
from customized_grpo.statistics.calibration import calibrate
from customized_grpo.statistics.decisions import (
    Bounds,
    DecisionCurve,
    along_steps,
    centre_difference,
    decision_curve,
    open_variance,
)

if TYPE_CHECKING:
    from customized_grpo.config.schema import RolloutConfig
    from customized_grpo.data.examples import Example
    from customized_grpo.policies.policy import Policy
    from customized_grpo.rewards.executors import Scorer
    from customized_grpo.rollout.encoding import PromptEncoder

SCORES = ("judge/", "reward/", "judge_score/", "score/")
"""What the names of the measured columns begin with; monitors are left out."""

CLOSED = 0.2
"""A quality counts as decided where no more than this share of its variance is open."""

QUIET_S = 10.0
"""Seconds between two lines on how far the measurement is."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Decisions:
    """When each score of a recipe is decided.

    Attributes:
        sigmas: Noise levels [T + 1].
        prompts: P.
        continuations: K.
        points: Steps before which trajectories branch, ascending.
        noisy_steps: Steps that draw noise, ascending.
        prompt_weights: Prompt weights of the recipe's schedule [T].
        curves: By score: judge/KIND and reward/KIND, and single ones as judge_score/NAME and score/NAME.
            Those that fewer than two prompts have are left out.
        difference: Centre of the identity reward's decisions minus the prompt reward's, in progress: above 0,
            identity comes later, as TDW assumes. None where either has no centre.
        judge_difference: The same of the judges; None also where there are no judges.
        calibrated: Prompt weights of calibrated TDW, by the judges if they score both qualities, otherwise by
            the rewards; None where neither do.
    """

    sigmas: list[float]
    prompts: int
    continuations: int
    points: list[int]
    noisy_steps: list[int]
    prompt_weights: list[float]
    curves: dict[str, DecisionCurve]
    difference: Bounds | None
    judge_difference: Bounds | None
    calibrated: CalibratedWeights | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON with the finding in words; an interval is {"mean", "low", "high"}."""
        curves = {}
        for name, curve in self.curves.items():
            curves[name] = {**asdict(curve), "centre": _to_json(curve.centre)}
        return {
            **asdict(self),
            "curves": curves,
            "difference": _to_json(self.difference),
            "judge_difference": _to_json(self.judge_difference),
            "premise": premise(self),
        }


@dataclass(frozen=True)
class CalibratedWeights:
    """Prompt weights of calibrated TDW, see `statistics.calibration`.

    Attributes:
        source: "judge" or "reward".
        weights: Of each step [T].
        low: Lower ends of their 95 % intervals over prompts [T].
        high: Upper ends [T].
    """

    source: str
    weights: list[float]
    low: list[float]
    high: list[float]


def _to_json(bounds: Bounds | None) -> dict[str, float] | None:
    return None if bounds is None else bounds._asdict()


@torch.no_grad()
def measure_decisions(
    policy: Policy,
    sampler: Sampler,
    examples: Sequence[Example],
    scorer: Scorer,
    judges: Judges | None,
    config: RolloutConfig,
    plan: BranchPlan,
    *,
    encoder: PromptEncoder,
    seed: int,
    prompt_weights: Tensor,
    report: Callable[[str], None] = lambda line: None,
) -> Decisions:
    """Draw continuations as the first iteration of training would, and score them.

    Args:
        policy: The policy; with a fresh adapter it is the base.
        sampler: The recipe's stochastic sampler.
        examples: P prompts, at least two.
        scorer: The training rewards.
        judges: Held-out judges, if there are any for this data.
        config: The recipe's rollout section.
        plan: What to draw.
        encoder: Encodes the examples.
        seed: The run's seed; the trunks are the first samples that `collect` draws with NoiseKey(seed, 0).
        prompt_weights: Prompt weights of the recipe's schedule [T].
        report: Takes lines on the cost beforehand, and on the way.
    """
    noise_key = NoiseKey(seed, iteration=0)
    report(cost(plan, len(examples)))
    started = time.monotonic()
    trunks = draw_trunks(policy, sampler, examples, encoder(examples), config, plan, noise_key)
    float(trunks.latents[-1].sum())  # waits for the device
    trunk_s = time.monotonic() - started
    started = time.monotonic()
    scores = ScoreTables(len(examples), plan)
    for samples, images in _trunk_images(policy, encoder, examples, trunks, config.batch_size):
        scores.add_trunks(samples, score_columns(images.cpu(), examples[samples], scorer, judges))
    image_s = time.monotonic() - started
    total_s = _branch_seconds(plan, trunk_s, image_s)
    report(
        f"about {duration(total_s)}, as a forward pass of one sample takes "
        f"{trunk_s / plan.n_steps / len(examples):.2g} s and an image with its scores "
        f"{image_s / len(examples):.2g} s"
    )
    example_of_branch = repeat_examples(examples, plan.continuations - 1)
    said = time.monotonic()
    branches = draw_branches(policy, sampler, examples, trunks, config, plan, noise_key)
    for place, samples, images in branches:
        columns = score_columns(images.cpu(), example_of_branch[samples], scorer, judges)
        scores.add_branches(place, samples, columns)
        if time.monotonic() - said > QUIET_S:
            said = time.monotonic()
            # `place` counts whole points; `samples.stop` the finished continuations of this one.
            share = (place + samples.stop / len(example_of_branch)) / len(plan.points)
            report(f"decision curves: {share:.0%} of the continuations are drawn")
    return summarise(scores.variances(), plan, sampler.sigmas, prompt_weights)


def cost(plan: BranchPlan, prompts: int) -> str:
    """Return what a measurement takes, in words."""
    noisy = len(plan.noisy)
    return (
        f"decision curves: {prompts} prompts x {plan.continuations} continuations from {len(plan.points)} "
        f"of {noisy} noisy steps: {prompts * plan.passes_per_prompt:,} forward passes of one sample, "
        f"{prompts * plan.images_per_prompt:,} images"
    )


def _branch_seconds(plan: BranchPlan, trunk_s: float, image_s: float) -> float:
    """Return the time of all branches, given the times of all trunks and of their images."""
    passes = plan.branch_passes_per_prompt / plan.n_steps
    return trunk_s * passes + image_s * (plan.images_per_prompt - 1)


def _trunk_images(
    policy: Policy, encoder: PromptEncoder, examples: Sequence[Example], trunks: Trunks, batch_size: int
) -> Iterator[tuple[slice, Tensor]]:
    """Yield prompts, a range of the P, and the images [B, 3, H, W] of their trunks."""
    buckets = [example.bucket for example in examples]
    for prompts in sample_batches(buckets, 1, slice(0, len(examples)), batch_size):
        yield prompts, policy.decode(torch.stack(list(trunks.latents[prompts])), *encoder.size)


class ScoreTables:
    """Scores of all continuations by name, [P, I, K]; NaN where there is none.

    Args:
        prompts: P.
        plan: What is drawn.
    """

    def __init__(self, prompts: int, plan: BranchPlan) -> None:
        self.shape = (prompts, len(plan.points), plan.continuations)
        self.tables: dict[str, Array] = {}

    def add_trunks(self, prompts: slice, columns: Mapping[str, Tensor]) -> None:
        """Add scores [B] of the trunks of some prompts: the last continuation at every point."""
        for table, values in self._tables(columns):
            # One image, and a continuation at every point: the trunk passes through all of them.
            table[prompts, :, -1] = values[:, None]

    def add_branches(self, place: int, samples: slice, columns: Mapping[str, Tensor]) -> None:
        """Add scores [B] of continuations from one point, a range of the P x (K - 1)."""
        # place among the P x (K - 1) branches -> prompt and number of its continuation
        prompts, numbers = np.divmod(np.arange(samples.start, samples.stop), self.shape[2] - 1)
        for table, values in self._tables(columns):
            table[prompts, place, numbers] = values

    def variances(self) -> dict[str, Array]:
        """Return the open variance at each point by score [P, I]."""
        return {name: open_variance(table) for name, table in self.tables.items()}

    def _tables(self, columns: Mapping[str, Tensor]) -> Iterator[tuple[Array, Array]]:
        """Yield the table and the new values of each score."""
        for name, values in columns.items():
            if name.startswith(SCORES):
                table = self.tables.setdefault(name, np.full(self.shape, math.nan))
                yield table, values.cpu().double().numpy()


def summarise(
    variances: Mapping[str, Array], plan: BranchPlan, sigmas: Tensor, prompt_weights: Tensor
) -> Decisions:
    """Reduce the open variance of every prompt to curves with intervals over prompts.

    Args:
        variances: By score [P, I], NaN where a prompt has fewer than two scores.
        plan: What was drawn.
        sigmas: Noise levels [T + 1].
        prompt_weights: Prompt weights of the recipe's schedule [T].
    """
    tables: dict[str, Array] = {}
    curves: dict[str, DecisionCurve] = {}
    for name in sorted(variances, key=_order):
        table = along_steps(variances[name], plan.points, plan.noisy, plan.n_steps)
        curve = decision_curve(table)
        if curve is not None:
            tables[name] = table
            curves[name] = curve
    return Decisions(
        sigmas=sigmas.tolist(),
        prompts=len(next(iter(variances.values()))),
        continuations=plan.continuations,
        points=list(plan.points),
        noisy_steps=list(plan.noisy),
        prompt_weights=prompt_weights.tolist(),
        curves=curves,
        difference=_difference(tables, "reward"),
        judge_difference=_difference(tables, "judge"),
        calibrated=_calibrated(tables, plan.noisy),
    )


def _order(name: str) -> int:
    """Return the place of a score's source among `SCORES`; sorting keeps the order within one."""
    return next(place for place, source in enumerate(SCORES) if name.startswith(source))


def _difference(tables: Mapping[str, Array], source: str) -> Bounds | None:
    identity = tables.get(f"{source}/identity")
    prompt = tables.get(f"{source}/prompt")
    return None if identity is None or prompt is None else centre_difference(identity, prompt)


def _calibrated(tables: Mapping[str, Array], noisy: Sequence[int]) -> CalibratedWeights | None:
    # Judges first: what the policy is trained on may be hacked, and then decides at other steps.
    for source in ("judge", "reward"):
        prompt = tables.get(f"{source}/prompt")
        identity = tables.get(f"{source}/identity")
        if prompt is None or identity is None:
            continue
        calibration = calibrate(prompt, identity, noisy)
        if calibration is not None:
            return CalibratedWeights(source, calibration.weights, calibration.low, calibration.high)
    return None


def premise(decisions: Decisions) -> str:
    """Return in words whether the prompt is decided before identity, as far as the intervals show.

    Differences are of the two centres in progress, 0 to 1, with 95 % intervals.
    """
    parts = []
    if any(name.startswith("judge/") for name in decisions.curves):
        parts.append(f"By the held-out judges, {_finding(decisions, 'judge', decisions.judge_difference)}")
    parts.append(f"by the training rewards, {_finding(decisions, 'reward', decisions.difference)}")
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def _finding(decisions: Decisions, source: str, difference: Bounds | None) -> str:
    if difference is None:
        return f"it cannot be told which is decided later, as {_why_undefined(decisions, source)}"
    text = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}] of the trajectory"
    if difference.low <= 0 <= difference.high:
        return f"prompt and identity cannot be told apart in time ({text})"
    text = f"({text}; {_open_when_closed(decisions, source)})"
    if difference.low > 0:
        return f"the premise of TDW holds: identity is decided later than the prompt {text}"
    return f"the premise of TDW does not hold: identity is decided earlier than the prompt {text}"


def _open_when_closed(decisions: Decisions, source: str) -> str:
    """Return how much of identity is open where the prompt is decided, in words."""
    prompt = decisions.curves[f"{source}/prompt"].share
    # there is always one: after the last step nothing is open
    step = next(step for step, share in enumerate(prompt) if share <= CLOSED)
    identity = decisions.curves[f"{source}/identity"].share[step]
    # A curve has a value before the first step and one after each.
    n_steps = len(prompt) - 1
    return (
        f"after {step} of {n_steps} steps {prompt[step]:.0%} of the prompt's variance is open, "
        f"and {identity:.0%} of identity's"
    )


def _why_undefined(decisions: Decisions, source: str) -> str:
    curves = {kind: decisions.curves.get(f"{source}/{kind}") for kind in PAIR}
    missing = [kind for kind, curve in curves.items() if curve is None]
    if missing:
        return f"fewer than two prompts have a score of {' and of '.join(missing)}"
    flat = [kind for kind, curve in curves.items() if curve is not None and curve.centre is None]
    if flat:
        return f"continuations never differ in {' and '.join(flat)}"
    return "fewer than two prompts have both scores"
