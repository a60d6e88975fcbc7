"""Held-out evaluation: the same prompts and the same noise, before, during and after training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from customized_grpo.evaluation.alarms import MonitorRecord, TrainingHealth
from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rollout.collect import sample_examples
from customized_grpo.statistics import monitors
from customized_grpo.statistics.intervals import Interval, clustered_bootstrap, paired_difference

if TYPE_CHECKING:
    from customized_grpo.data.examples import Example
    from customized_grpo.policies.policy import Policy
    from customized_grpo.rewards.executors import Scorer
    from customized_grpo.rollout.encoding import PromptEncoder

KINDS = ("prompt", "identity")
MIN_CLUSTERS = 2
# Image statistics lie in [0, 1]. One that hardly varies over the base's images (no bright pixels anywhere,
# say) must not raise an alarm for a change that nobody would see.
SMALLEST_SPREAD = 0.05
DIVERSITY = "monitor/diversity"
# Monitors that are no image statistics and have conditions of their own.
OTHER_MONITORS = ("monitor/copy_score", "monitor/background_similarity", DIVERSITY)
DIVERSITY_PIXELS = 64  # side to which pictures are averaged before their spread is taken


class Judges(Protocol):
    """Encoders that took no part in training."""

    def columns(self, images: Tensor, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return scores [B] by metric name, one picture per example."""
        ...


@dataclass(frozen=True)
class HeldOutScores:
    """One evaluation: a table with a row per picture.

    Attributes:
        columns: Values by metric name, one per picture; NaN where there is none.
        ids: Which prompt and sample a row is, so that two evaluations can be paired.
        subjects: The cluster of each row.
    """

    columns: dict[str, list[float]]
    ids: list[str]
    subjects: list[str]

    @classmethod
    def of(
        cls, columns: dict[str, list[float]], examples: Sequence[Example], samples_per_prompt: int
    ) -> HeldOutScores:
        """Return the table of columns whose rows are the samples of the examples, those of one together."""
        numbers = range(samples_per_prompt)
        ids = [f"{example.id}/{number}" for example in examples for number in numbers]
        return cls(columns, ids, [example.subject for example in examples for _ in numbers])

    def joined(
        self,
        gather: Callable[[Tensor], Tensor],
        examples: Sequence[Example],
        samples_per_prompt: int,
    ) -> HeldOutScores:
        """Return the table of all processes.

        Args:
            gather: Joins the tensors of all processes along dimension 0.
            examples: Of all processes; what comes after them fills up the last process's share.
            samples_per_prompt: Pictures of each.
        """
        rows = torch.tensor(list(self.columns.values()), dtype=torch.float64).T
        everyone = gather(rows)[: len(examples) * samples_per_prompt].T.tolist()
        return HeldOutScores.of(dict(zip(self.columns, everyone, strict=True)), examples, samples_per_prompt)

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON (NaN becomes null)."""
        columns = {k: [None if math.isnan(v) else v for v in values] for k, values in self.columns.items()}
        return {"ids": self.ids, "subjects": self.subjects, "columns": columns}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> HeldOutScores:
        """Read back what `to_json` returned."""
        columns = {k: [math.nan if v is None else v for v in values] for k, values in data["columns"].items()}
        return cls(columns, data["ids"], data["subjects"])

    def is_measured(self, metric: str, base: HeldOutScores) -> bool:
        """Return whether enough subjects have the metric, here and in the base, for intervals."""
        pairs = zip(self.columns[metric], base.columns[metric], self.subjects, strict=True)
        scored = {subject for now, before, subject in pairs if not math.isnan(now + before)}
        return len(scored) >= MIN_CLUSTERS

    def interval(self, metric: str) -> Interval:
        """Return the mean of a metric with its 95 % interval, clustered by subject."""
        return clustered_bootstrap(self.columns[metric], self.subjects, nan="omit")

    def change(self, metric: str, base: HeldOutScores) -> Interval:
        """Return the paired change of a metric against the base, clustered by subject."""
        if base.ids != self.ids:
            raise ValueError("the two evaluations are not of the same prompts and samples")
        return paired_difference(self.columns[metric], base.columns[metric], self.subjects, nan="omit")

    def metrics(self) -> dict[str, float]:
        """Return the means for one line of metrics.jsonl, with intervals of the two judges."""
        line = {name: _mean(values) for name, values in self.columns.items()}
        for name in ("judge/identity", "judge/prompt"):
            if name in self.columns and self.is_measured(name, self):
                interval = self.interval(name)
                line |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        return line


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if not math.isnan(value)]
    return sum(finite) / len(finite) if finite else math.nan


@torch.no_grad()
def evaluate_policy(
    policy: Policy,
    examples: Sequence[Example],
    scorer: Scorer,
    judges: Judges | None,
    *,
    encode: PromptEncoder,
    reward_weights: Sequence[float] | None = None,
    sigmas: Tensor,
    samples_per_prompt: int,
    seed: int,
    batch_size: int,
    between: Callable[[], None] = lambda: None,
) -> tuple[HeldOutScores, Tensor]:
    """Generate for every held-out prompt and score the pictures.

    Args:
        policy: The policy as it is now.
        examples: Held-out examples.
        scorer: The training rewards, to compare with the judges.
        judges: Held-out judges, if there are any for this data.
        encode: Encodes the examples, and knows the size of the images.
        reward_weights: Share of each reward among those of its kind, as in training; None: equal shares.
        sigmas: Noise levels [T + 1]; steps draw no noise.
        samples_per_prompt: Pictures of each prompt.
        seed: Of the initial noise; it depends on the prompt's id and the sample's number besides.
        batch_size: Pictures made together.
        between: Called before every batch; may raise to stop.

    Returns:
        the scores, and the images [N, 3, H, W] in the order of the rows (samples of a prompt together).
    """
    samples = [example for example in examples for _ in range(samples_per_prompt)]
    columns: dict[str, list[float]] = {}
    images = []
    drawn = sample_examples(
        policy,
        encode,
        examples,
        sigmas,
        samples_per_prompt=samples_per_prompt,
        batch_size=batch_size,
        seeds=(seed, "held-out"),
        between=between,
    )
    for rows, made in drawn:
        images.append(made.cpu())
        for name, values in _columns(images[-1], samples[rows], scorer, reward_weights, judges).items():
            columns.setdefault(name, []).extend(values.tolist())
    if samples_per_prompt > 1:
        columns[DIVERSITY] = _diversity(torch.cat(images), samples_per_prompt).tolist()
    return HeldOutScores.of(columns, examples, samples_per_prompt), torch.cat(images)


def _diversity(images: Tensor, group_size: int) -> Tensor:
    """Return [N] how much the pictures of each prompt differ, the same for all pictures of it.

    In the directions of their centred pixels, as `iteration_metrics.pixel_diversity`, seen from afar.
    """
    side = min(DIVERSITY_PIXELS, *images.shape[2:])
    pixels = torch.nn.functional.adaptive_avg_pool2d(images, side).flatten(1) - 0.5
    return monitors.in_group_diversity(pixels, group_size).repeat_interleave(group_size)


def _columns(
    images: Tensor,
    examples: Sequence[Example],
    scorer: Scorer,
    reward_weights: Sequence[float] | None,
    judges: Judges | None,
) -> dict[str, Tensor]:
    scores = scorer.score(scoring_batch(images, examples))
    columns: dict[str, Tensor] = {}
    for kind in KINDS:
        members = [k for k, reward in enumerate(scorer.rewards) if reward.kind == kind]
        if members:
            shares = torch.tensor([1.0 if reward_weights is None else reward_weights[k] for k in members])
            columns[f"reward/{kind}"] = scores[:, members] @ shares / shares.sum()
    if judges is not None:
        columns |= judges.columns(images, examples)
    statistics = monitors.image_statistics(images)
    return columns | {f"monitor/{name}": values for name, values in statistics.items()}


def scoring_batch(images: Tensor, examples: Sequence[Example]) -> ScoringBatch:
    """Return what rewards see of pictures, one example per picture."""
    masks = [e.masks for e in examples]
    known = [list(m) for m in masks if m is not None]
    return ScoringBatch(
        images=images,
        prompts=[e.prompt for e in examples],
        references=[list(e.references) for e in examples],
        reference_masks=known if len(known) == len(masks) else None,
        image_masks=None,
        meta=[{"id": e.id, **e.meta} for e in examples],
    )


def summary(base: HeldOutScores, tuned: HeldOutScores) -> dict[str, dict[str, dict[str, float]]]:
    """Return base, tuned and paired difference of every metric with 95 % intervals clustered by subject.

    A metric that fewer than two subjects have is left out.
    """

    def bounds(interval: Interval) -> dict[str, float]:
        return {"mean": interval.mean, "low": interval.low, "high": interval.high}

    measured = [metric for metric in tuned.columns if tuned.is_measured(metric, base)]
    return {
        "base": {m: bounds(base.interval(m)) for m in measured},
        "tuned": {m: bounds(tuned.interval(m)) for m in measured},
        "difference": {m: bounds(tuned.change(m, base)) for m in measured},
    }


def train_gaps(scores: HeldOutScores, train_reward: Mapping[str, float]) -> dict[str, float]:
    """Return by how much each reward is higher in training than on held-out prompts, "gap/KIND".

    Training draws noise and evaluation does not, so the gap has a level of its own: its growth is what tells.

    Args:
        scores: An evaluation.
        train_reward: Mean of each reward over the training samples since the one before, by kind.
    """
    return {
        f"gap/{kind}": reward - _mean(scores.columns[f"reward/{kind}"])
        for kind, reward in train_reward.items()
        if f"reward/{kind}" in scores.columns
    }


def monitor_record(
    iteration: int, now: HeldOutScores, base: HeldOutScores, health: TrainingHealth
) -> MonitorRecord:
    """Return what the alarms look at.

    Args:
        iteration: Of training.
        now: The latest evaluation.
        base: The evaluation before training.
        health: What training said of itself since the last evaluation.
    """

    def change(metric: str) -> Interval | None:
        measured = metric in now.columns and now.is_measured(metric, base)
        return now.change(metric, base) if measured else None

    pairs = {kind: (change(f"reward/{kind}"), change(f"judge/{kind}")) for kind in KINDS}
    judged = {kind: pair for kind, pair in pairs.items() if pair[0] is not None and pair[1] is not None}
    return MonitorRecord(
        iteration,
        copy_change=change("monitor/copy_score"),
        background_change=change("monitor/background_similarity"),
        proxy_change={kind: pair[0] for kind, pair in judged.items() if pair[0]},
        held_out_change={kind: pair[1] for kind, pair in judged.items() if pair[1]},
        zero_std_share=health.zero_std,
        nan_share=health.nan,
        diversity_ratio=_diversity_ratio(now, base),
        image_shift=_image_shifts(now, base),
        train_reward=health.reward,
        train_gap=_scaled_gaps(now, base, health.reward),
    )


def _image_shifts(now: HeldOutScores, base: HeldOutScores) -> dict[str, float]:
    """Return how far each image statistic moved, in standard deviations over the base's images."""
    shifts = {}
    for name in now.columns:
        if name.startswith("monitor/") and name not in OTHER_MONITORS:
            before = torch.tensor(base.columns[name])
            moved = torch.tensor(now.columns[name]).mean() - before.mean()
            shifts[name.removeprefix("monitor/")] = float(
                moved.abs() / before.std().clamp_min(SMALLEST_SPREAD)
            )
    return shifts


def _diversity_ratio(now: HeldOutScores, base: HeldOutScores) -> float | None:
    """Return the diversity of each prompt's pictures over that of the base; None if it was not measured."""
    if DIVERSITY not in now.columns or DIVERSITY not in base.columns:
        return None
    before = _mean(base.columns[DIVERSITY])
    return _mean(now.columns[DIVERSITY]) / before if before > 0 else None


def _scaled_gaps(
    now: HeldOutScores, base: HeldOutScores, train_reward: Mapping[str, float]
) -> dict[str, float]:
    found = {}
    for name, gap in train_gaps(now, train_reward).items():
        kind = name.removeprefix("gap/")
        values = torch.tensor(base.columns[f"reward/{kind}"])
        spread = float(values[~values.isnan()].std())
        if spread > 0 and not math.isnan(gap):  # one picture or a constant reward has no spread
            found[kind] = gap / spread
    return found
