"""When in denoising the scores of a sample arise: the premise of TDW, measured.

TDW weighs the prompt early and identity late, on the premise that this is when each is decided. Before step i
of T the policy already predicts the clean sample, x0 = x_i - sigma_i v(x_i, sigma_i). What the prediction
scores rises along the trajectory, and the rise from step i to i + 1 is the gain of step i, whose progress is
u_i = (i + 1/2) / T. The gains telescope to the score of the sample minus that of the first prediction, which
is made from noise alone. The last step adds nothing: it ends in its own prediction.

Legend: P prompts, G samples each, N = P x G samples, T steps, C subjects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit
from torch import Tensor

from customized_grpo.evaluation.held_out import KINDS, MIN_CLUSTERS, Judges, _columns
from customized_grpo.rollout.collect import Sampler, predicted_images, step_plan
from customized_grpo.statistics.intervals import clustered_bootstrap

if TYPE_CHECKING:
    from customized_grpo.config.schema import RolloutConfig
    from customized_grpo.data.examples import Example
    from customized_grpo.policies.policy import Policy
    from customized_grpo.rewards.executors import Scorer
    from customized_grpo.rollout.encoding import PromptEncoder

METRICS = ("reward/prompt", "reward/identity", "judge/prompt", "judge/identity")
N_BOOT, LEVEL = 2000, 0.95
Array = NDArray[np.float64]


class Bounds(NamedTuple):
    """An estimate and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class MetricGains:
    """The gains of one metric.

    Attributes:
        scores: Mean score of the prediction before each step, and of the sample [T + 1].
        gain: Mean gain of each step [T], in units of the score.
        low: Lower ends of their 95 % intervals [T], clustered by subject.
        high: Upper ends [T].
        centre: Mean progress of the gains, sum u_i gain_i / sum gain_i, of the mean gains; None where the
            total gain is not clearly positive. Negative gains count, so it may lie outside [0, 1].
    """

    scores: list[float]
    gain: list[float]
    low: list[float]
    high: list[float]
    centre: Bounds | None


@dataclass(frozen=True)
class StepGains:
    """The gains of rewards and judges along the trajectory.

    Attributes:
        sigmas: Noise levels [T + 1].
        samples: N.
        rows: P.
        prompt_weights: Of the recipe's schedule [T].
        metrics: By name, one of `METRICS`; those that fewer than two subjects have are left out.
        difference: Centre of the identity reward's gains minus centre of the prompt reward's, in progress:
            above 0, identity comes later, as TDW assumes. None where either has no centre.
        judge_difference: The same of the judges; None also where there are no judges.
    """

    sigmas: list[float]
    samples: int
    rows: int
    prompt_weights: list[float]
    metrics: dict[str, MetricGains]
    difference: Bounds | None
    judge_difference: Bounds | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON; an interval is {"mean", "low", "high"}."""
        metrics = {
            name: {**asdict(metric), "centre": _bounds_to_json(metric.centre)}
            for name, metric in self.metrics.items()
        }
        return {
            **asdict(self),
            "metrics": metrics,
            "difference": _bounds_to_json(self.difference),
            "judge_difference": _bounds_to_json(self.judge_difference),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StepGains:
        """Read back what `to_json` returned."""
        metrics = {
            name: MetricGains(**{**metric, "centre": _bounds_from_json(metric["centre"])})
            for name, metric in data["metrics"].items()
        }
        differences = {name: _bounds_from_json(data[name]) for name in ("difference", "judge_difference")}
        return cls(**{**data, "metrics": metrics, **differences})


def _bounds_to_json(bounds: Bounds | None) -> dict[str, float] | None:
    return None if bounds is None else bounds._asdict()


def _bounds_from_json(data: dict[str, float] | None) -> Bounds | None:
    return None if data is None else Bounds(**data)


def measure_step_gains(
    policy: Policy,
    sampler: Sampler,
    examples: Sequence[Example],
    scorer: Scorer,
    judges: Judges | None,
    rollout_config: RolloutConfig,
    *,
    encode: PromptEncoder,
    group_size: int,
    reward_weights: Sequence[float] | None,
    seed: int,
    prompt_weights: Tensor,
    between: Callable[[], None] = lambda: None,
) -> StepGains:
    """Draw samples as the first iteration of training does, and score what is predicted on the way.

    Args:
        policy: The policy; with a fresh adapter it is the base.
        sampler: The recipe's stochastic sampler.
        examples: P prompts.
        scorer: The training rewards.
        judges: Held-out judges, if there are any for this data.
        rollout_config: The recipe's rollout section.
        encode: Encodes the examples.
        group_size: G.
        reward_weights: Share of each reward among those of its kind, as in training; None: equal shares.
        seed: The run's seed; the samples are those of `rollout.collect` with seeds (seed, 0).
        prompt_weights: Of the recipe's schedule [T].
        between: Called before every batch; may raise to stop.
    """
    noisy, _ = step_plan(rollout_config, 1.0, 0, seed)
    samples = [example for example in examples for _ in range(group_size)]
    scores: dict[str, Tensor] = {}
    predictions = predicted_images(
        policy,
        sampler,
        examples,
        rollout_config,
        encode=encode,
        group_size=group_size,
        noisy=noisy,
        seeds=(seed, 0),
        between=between,
    )
    for rows, step, images in predictions:
        columns = _columns(images.cpu(), samples[rows], scorer, reward_weights, judges)
        for metric in METRICS:
            if metric in columns:
                table = scores.setdefault(metric, torch.full((len(samples), len(sampler.sigmas)), math.nan))
                table[rows, step] = columns[metric].cpu()
    return summarise(scores, [e.subject for e in samples], sampler.sigmas, prompt_weights, len(examples))


def summarise(
    scores: Mapping[str, Tensor],
    subjects: Sequence[str],
    sigmas: Tensor,
    prompt_weights: Tensor,
    rows: int,
) -> StepGains:
    """Reduce the scores of every prediction to gains with intervals clustered by subject.

    A sample counts for a metric when all of its T + 1 images have a score, so that gains telescope.

    Args:
        scores: By metric [N, T + 1], NaN where there is none.
        subjects: Cluster of each sample [N].
        sigmas: Noise levels [T + 1].
        prompt_weights: [T].
        rows: P.
    """
    known = np.asarray(subjects)
    tables = {metric: values.double().numpy() for metric, values in scores.items()}
    measured = {metric: table for metric, table in tables.items() if _is_measured(_scored(table), known)}
    return StepGains(
        sigmas=sigmas.tolist(),
        samples=len(known),
        rows=rows,
        prompt_weights=prompt_weights.tolist(),
        metrics={metric: _metric_gains(table, known) for metric, table in measured.items()},
        difference=_difference(measured, "reward", known),
        judge_difference=_difference(measured, "judge", known),
    )


def _scored(table: Array) -> NDArray[np.bool_]:
    """Return which samples have all of their scores [N]."""
    scored: NDArray[np.bool_] = np.isfinite(table.sum(1))
    return scored


def _is_measured(scored: NDArray[np.bool_], subjects: NDArray[np.str_]) -> bool:
    return len(np.unique(subjects[scored])) >= MIN_CLUSTERS


def _metric_gains(table: Array, subjects: NDArray[np.str_]) -> MetricGains:
    scored = _scored(table)
    table, subjects = table[scored], subjects[scored]
    intervals = [clustered_bootstrap(gain, subjects) for gain in np.diff(table).T]
    centres = _Centres.of(table, subjects)
    return MetricGains(
        scores=table.mean(0).tolist(),
        gain=[interval.mean for interval in intervals],
        low=[interval.low for interval in intervals],
        high=[interval.high for interval in intervals],
        centre=None if centres is None else centres.bounds(),
    )


def _difference(tables: Mapping[str, Array], source: str, subjects: NDArray[np.str_]) -> Bounds | None:
    """Return identity's centre minus prompt's, both of the same bootstrap draws."""
    names = (f"{source}/identity", f"{source}/prompt")
    if any(name not in tables for name in names):
        return None
    pair = [tables[name] for name in names]
    both = _scored(pair[0]) & _scored(pair[1])
    if not _is_measured(both, subjects):
        return None
    identity, prompt = (_Centres.of(table[both], subjects[both]) for table in pair)
    return None if identity is None or prompt is None else identity.minus(prompt).bounds()


@dataclass(frozen=True)
class _Centres:
    """A centre, or a difference of two, and what it is in every bootstrap draw (NaN: there is none)."""

    value: float
    draws: Array
    clusters: int

    @classmethod
    def of(cls, table: Array, subjects: NDArray[np.str_]) -> _Centres | None:
        """Return the centre of gains of scores [N, T + 1], as a ratio of means in every draw of subjects.

        None unless the interval of the total gain lies above 0: without a gain there is nothing to place.
        """
        if not clustered_bootstrap(table[:, -1] - table[:, 0], subjects, n_boot=N_BOOT, level=LEVEL).low > 0:
            return None
        gains = np.diff(table)
        progress = (np.arange(gains.shape[1]) + 0.5) / gains.shape[1]
        names, index = np.unique(subjects, return_inverse=True)
        sums = np.stack([np.bincount(index, gain) for gain in gains.T], 1)
        count = len(names)
        # As in `clustered_bootstrap`: equal seeds draw equal subjects, so that two centres are paired.
        draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), N_BOOT) @ sums
        totals = draws.sum(1)
        totals[totals <= 0] = math.nan  # fewer than the interval leaves out, or there was no clear gain
        return cls(float(sums.sum(0) @ progress / sums.sum()), draws @ progress / totals, count)

    def minus(self, other: _Centres) -> _Centres:
        """Return the paired difference of two centres of the same samples."""
        return _Centres(self.value - other.value, self.draws - other.draws, self.clusters)

    def bounds(self) -> Bounds:
        """Return the expanded percentile interval, see `statistics`."""
        count = self.clusters
        tail = float(ndtr(stdtrit(count - 1, (1 - LEVEL) / 2) * math.sqrt(count / (count - 1))))
        low, high = np.nanquantile(self.draws, [tail, 1 - tail])
        return Bounds(self.value, float(low), float(high))


def premise(gains: StepGains) -> str:
    """Return one sentence on whether prompt gains come before identity gains, no stronger than the intervals.

    Its numbers are differences of the two centres in progress, 0 to 1, with 95 % intervals.
    """
    parts = [f"By the training rewards, {_finding(gains, 'reward', gains.difference)}"]
    if any(metric.startswith("judge/") for metric in gains.metrics):
        parts.append(f"by the held-out judges, {_finding(gains, 'judge', gains.judge_difference)}")
    return "; ".join(parts) + "."


def _finding(gains: StepGains, source: str, difference: Bounds | None) -> str:
    if difference is None:
        return f"it cannot be told which gains come later, as {_why_undefined(gains, source)}"
    text = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}] of the trajectory"
    if difference.low > 0:
        return f"the premise of TDW holds: identity gains come later than prompt gains ({text})"
    if difference.high < 0:
        return f"the premise of TDW does not hold: identity gains come earlier than prompt gains ({text})"
    return f"prompt and identity gains cannot be told apart in time ({text})"


def _why_undefined(gains: StepGains, source: str) -> str:
    metrics = {kind: gains.metrics.get(f"{source}/{kind}") for kind in KINDS}
    flat = [kind for kind, metric in metrics.items() if metric is not None and metric.centre is None]
    if len(flat) == 2:
        return "neither score clearly rises over the steps"
    if flat:
        return f"the {flat[0]} score does not clearly rise over the steps"
    return "fewer than two subjects have both scores"
