"""At which denoising steps the scores of a sample arise: the premise of TDW, measured.

TDW weights the prompt early and identity late, on the premise that this is when each is decided. Before step
i of T the policy already predicts the clean sample, x0 = x_i - sigma_i v(x_i, sigma_i). The score of the
prediction rises along the trajectory, and its rise from step i to i + 1 is the gain of step i, whose progress
is u_i = (i + 1/2) / T. The gains telescope to the score of the sample minus that of the first prediction,
which is made from noise alone. The last step's gain is 0, because it ends in its own prediction.

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

from customized_grpo.evaluation.held_out import Judges, score_columns
from customized_grpo.evaluation.scores import MIN_CLUSTERS
from customized_grpo.kinds import PAIR
from customized_grpo.rollout.batches import repeat_examples
from customized_grpo.rollout.collect import NoiseKey, predict_images
from customized_grpo.rollout.sampler import Sampler, plan_steps
from customized_grpo.statistics.intervals import clustered_bootstrap

if TYPE_CHECKING:
    from customized_grpo.config.schema import RolloutConfig
    from customized_grpo.data.examples import Example
    from customized_grpo.policies.policy import Policy
    from customized_grpo.rewards.executors import Scorer
    from customized_grpo.rollout.encoding import PromptEncoder

METRICS = ("reward/prompt", "reward/identity", "judge/prompt", "judge/identity")
N_BOOT = 2000  # bootstrap draws
LEVEL = 0.95  # of the intervals
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
        scores: Mean score of the prediction before each step, then of the sample [T + 1].
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
        prompt_weights: Prompt weights of the recipe's schedule [T].
        metrics: Gains by metric, one of `METRICS`; those that fewer than two subjects have are left out.
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
    encoder: PromptEncoder,
    group_size: int,
    seed: int,
    prompt_weights: Tensor,
    before_batch: Callable[[], None] = lambda: None,
) -> StepGains:
    """Draw samples as the first iteration of training does, and score the predictions on the way.

    Args:
        policy: The policy; with a fresh adapter it is the base.
        sampler: The recipe's stochastic sampler.
        examples: P prompts.
        scorer: The training rewards.
        judges: Held-out judges, if there are any for this data.
        rollout_config: The recipe's rollout section.
        encoder: Encodes the examples.
        group_size: G.
        seed: The run's seed; the samples are those that `collect` draws with NoiseKey(seed, 0).
        prompt_weights: Prompt weights of the recipe's schedule [T].
        before_batch: Called before every batch; may raise to stop.
    """
    plan = plan_steps(rollout_config, 1.0, 0, seed)
    example_of_sample = repeat_examples(examples, group_size)
    scores: dict[str, Tensor] = {}
    predictions = predict_images(
        policy,
        sampler,
        examples,
        rollout_config,
        encoder=encoder,
        group_size=group_size,
        noisy=plan.noisy,
        noise_key=NoiseKey(seed, iteration=0),
        before_batch=before_batch,
    )
    no_scores = torch.full((len(example_of_sample), sampler.n_steps + 1), math.nan)
    for samples, step, images in predictions:
        columns = score_columns(images.cpu(), example_of_sample[samples], scorer, judges)
        for metric in METRICS:
            if metric in columns:
                table = scores.setdefault(metric, no_scores.clone())
                table[samples, step] = columns[metric].cpu()
    subjects = [example.subject for example in example_of_sample]
    return summarise(scores, subjects, sampler.sigmas, prompt_weights, len(examples))


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
        scores: Scores by metric [N, T + 1], NaN where there is none.
        subjects: Cluster of each sample [N].
        sigmas: Noise levels [T + 1].
        prompt_weights: Prompt weights of the recipe's schedule [T].
        rows: P.
    """
    clusters = np.asarray(subjects)
    tables: dict[str, Array] = {}
    for metric, values in scores.items():
        table = values.double().numpy()
        if _is_measured(_scored(table), clusters):
            tables[metric] = table
    return StepGains(
        sigmas=sigmas.tolist(),
        samples=len(clusters),
        rows=rows,
        prompt_weights=prompt_weights.tolist(),
        metrics={metric: _metric_gains(table, clusters) for metric, table in tables.items()},
        difference=_difference(tables, "reward", clusters),
        judge_difference=_difference(tables, "judge", clusters),
    )


def _scored(table: Array) -> NDArray[np.bool_]:
    """Return which samples have all of their scores [N]."""
    scored: NDArray[np.bool_] = np.isfinite(table.sum(1))
    return scored


def _is_measured(scored: NDArray[np.bool_], subjects: NDArray[np.str_]) -> bool:
    return len(np.unique(subjects[scored])) >= MIN_CLUSTERS


def _metric_gains(table: Array, subjects: NDArray[np.str_]) -> MetricGains:
    scored = _scored(table)
    table = table[scored]
    subjects = subjects[scored]
    intervals = [clustered_bootstrap(gain, subjects) for gain in np.diff(table).T]
    centres = _Centres.from_scores(table, subjects)
    return MetricGains(
        scores=table.mean(0).tolist(),
        gain=[interval.mean for interval in intervals],
        low=[interval.low for interval in intervals],
        high=[interval.high for interval in intervals],
        centre=None if centres is None else centres.bounds(),
    )


def _difference(tables: Mapping[str, Array], source: str, subjects: NDArray[np.str_]) -> Bounds | None:
    """Return identity's centre minus prompt's, both from the same bootstrap draws.

    Args:
        tables: Scores by metric [N, T + 1].
        source: "reward" or "judge".
        subjects: Cluster of each sample [N].
    """
    identity_table = tables.get(f"{source}/identity")
    prompt_table = tables.get(f"{source}/prompt")
    if identity_table is None or prompt_table is None:
        return None
    both = _scored(identity_table) & _scored(prompt_table)
    if not _is_measured(both, subjects):
        return None
    identity = _Centres.from_scores(identity_table[both], subjects[both])
    prompt = _Centres.from_scores(prompt_table[both], subjects[both])
    return None if identity is None or prompt is None else identity.minus(prompt).bounds()


@dataclass(frozen=True)
class _Centres:
    """A centre, or the difference of two, with its bootstrap distribution.

    Attributes:
        value: The estimate.
        draws: Its value in every bootstrap draw [N_BOOT], NaN where a draw has none.
        clusters: Number of subjects.
    """

    value: float
    draws: Array
    clusters: int

    @classmethod
    def from_scores(cls, table: Array, subjects: NDArray[np.str_]) -> _Centres | None:
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
        totals[totals <= 0] = math.nan  # fewer draws than the interval leaves out: its lower end is above 0
        return cls(float(sums.sum(0) @ progress / sums.sum()), draws @ progress / totals, count)

    def minus(self, other: _Centres) -> _Centres:
        """Return the paired difference of two centres of the same samples."""
        return _Centres(self.value - other.value, self.draws - other.draws, self.clusters)

    def bounds(self) -> Bounds:
        """Return the expanded percentile interval, as `statistics.intervals` computes it."""
        count = self.clusters
        tail = float(ndtr(stdtrit(count - 1, (1 - LEVEL) / 2) * math.sqrt(count / (count - 1))))
        low, high = np.nanquantile(self.draws, [tail, 1 - tail])
        return Bounds(self.value, float(low), float(high))


def premise(gains: StepGains) -> str:
    """Return one sentence on whether prompt gains come before identity gains, as far as the intervals show.

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
    metrics = {kind: gains.metrics.get(f"{source}/{kind}") for kind in PAIR}
    flat = [kind for kind, metric in metrics.items() if metric is not None and metric.centre is None]
    if len(flat) == 2:
        return "neither score clearly rises over the steps"
    if flat:
        return f"the {flat[0]} score does not clearly rise over the steps"
    missing = [kind for kind, metric in metrics.items() if metric is None]
    if len(missing) == 1:
        return f"no two subjects have a score of {missing[0]}"
    return "fewer than two subjects have both scores"
