"""The report of a run: one HTML page that holds everything, for people who were not there."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from customized_grpo.pages.curves import total
from customized_grpo.pages.findings import alarms, findings
from customized_grpo.pages.page import TEMPLATES, evenly, render, write_page
from customized_grpo.pages.plots.cell_plots import interval_plot
from customized_grpo.pages.plots.numbers import (
    difference_title,
    interval_text,
    number,
    symmetric_limit,
)
from customized_grpo.pages.plots.scales import compact
from customized_grpo.pages.reward_table import reward_rows
from customized_grpo.pages.run_data import BeforeAfter, RunData, read_run
from customized_grpo.pages.run_figures import sections
from customized_grpo.pages.sample_images import Samples
from customized_grpo.reporting.ending import ending_sentence
from customized_grpo.reporting.progress import duration

MAX_ROWS = 12
"""Prompts whose samples are on the page."""

MAX_ITERATIONS = 9
"""Stages of training that the slider of a prompt has."""


@dataclass(frozen=True)
class Headline:
    """How a metric is named and read.

    Attributes:
        metric: Name in results.
        name: Name on the page.
        meaning: What it measures, in a sentence or two.
        better: +1 when up is good, -1 when down is.
    """

    metric: str
    name: str
    meaning: str
    better: int


HEADLINES = (
    Headline(
        "judge/identity",
        "Held-out identity",
        "Is it the same subject? Asked of an encoder that training never used; 1 is a perfect match.",
        +1,
    ),
    Headline(
        "judge/prompt",
        "Held-out prompt accuracy",
        "Share of what the prompt asks for that classifiers find in the image.",
        +1,
    ),
    Headline(
        "judge/quality",
        "Held-out quality",
        "What the judges of kind quality, which training never used, say of the image.",
        +1,
    ),
    Headline(
        "monitor/copy_score",
        "Copy score",
        "0 is an honest new image, 1 is the reference pasted. Lower is better.",
        -1,
    ),
    Headline(
        "monitor/background_similarity",
        "Background similarity",
        "Likeness to the reference outside the subject: high means a copied scene. Lower is better.",
        -1,
    ),
)


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder, finished or not, and return its path.

    Reads config.yaml and metrics.jsonl, and if present versions.json, summary.json and samples/.

    Raises:
        UserError: Not a run folder, or a file of it is damaged.
    """
    return write_page(run_dir / "report.html", render_run_page(read_run(run_dir)))


def render_run_page(run: RunData) -> str:
    """Return the page of a run."""
    # The page forbids all scripts but the one with this hash.
    # of the same text that goes into the page: one other byte, and browsers refuse to run it
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return render(
        "report.html.j2",
        **numbers_of(run),
        samples=_samples(run.samples) if run.samples is not None else None,
        # a file of this package; escaped, it would have another hash
        script=Markup(script),
        script_hash=digest,
    )


def numbers_of(run: RunData) -> dict[str, Any]:
    """Return what the templates of a run show of its numbers, by the names that they use."""
    return {
        "run": run,
        "state": _state(run),
        "ending": "" if run.summary.get("finished") else ending_sentence(run.ended),
        "facts": _facts(run),
        "alarms": alarms(run),
        "findings": findings(run),
        "headline": _headline(run),
        "rest": _rest(run),
        "rewards": reward_rows(run),
        "sections": sections(run),
    }


def _state(run: RunData) -> str:
    if run.summary.get("finished"):
        return "finished"
    iteration = run.last.get("iteration", 0)
    total = run.setting("train.iterations")
    return f"unfinished: iteration {iteration} of {total if total is not None else '?'}"


def _facts(run: RunData) -> list[tuple[str, str]]:
    """Return (name, value) of the facts that identify the run; only those that are known."""
    # the summary is there only when the run has finished; before, the last record has to do
    wall = run.summary.get("wall_s", run.last.get("wall_s"))
    rollouts = run.summary.get("rollouts", run.last.get("rollouts"))
    rate = run.setting("train.learning_rate")
    facts: list[tuple[str, Any]] = [
        ("algorithm", run.setting("train.algorithm")),
        ("advantage", run.setting("advantage.name")),
        *(run.setting("advantage.options") or {}).items(),
        ("schedule", run.setting("schedule.name")),
        ("sampler", run.setting("rollout.sampler")),
        ("steps", run.setting("rollout.steps")),
        ("group size", run.setting("train.group_size")),
        ("learning rate", compact(rate) if isinstance(rate, int | float) else None),
        ("iterations", run.last.get("iteration")),
        ("rollouts", f"{rollouts:,}" if isinstance(rollouts, int) else None),
        ("dynamic sampling", _dynamic_sampling(run)),
        ("time", duration(wall) if isinstance(wall, int | float) else None),
        ("seed", run.summary.get("seed", run.setting("run.seed"))),
        ("device", run.summary.get("device", run.setting("model.device"))),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _dynamic_sampling(run: RunData) -> str | None:
    """Return how many groups were dropped and how many stayed; None without dynamic sampling."""
    if not any("sampling/drawn" in record for record in run.train):
        return None
    names = ("drawn", "dropped", "stayed")
    counts = {name: f"{total(run.train, f'sampling/{name}'):,.0f}" for name in names}
    return (
        f"{counts['dropped']} of {counts['drawn']} groups taught nothing and were dropped, with a budget of "
        f"{run.setting('train.dynamic_sampling.budget')} an iteration; {counts['stayed']} such groups stayed"
    )


@dataclass(frozen=True)
class MetricRow:
    """One metric before and after training, as a row of a table.

    Attributes:
        name: Name of the metric.
        columns: (number, interval) of base, tuned and difference.
        verdict: What the difference shows, in words.
        meaning: What the metric measures; empty outside the headline table, as are the next two.
        plot: The difference around 0.
        quality: "better", "worse" or "unclear".
    """

    name: str
    columns: Sequence[tuple[str, str]]
    verdict: str
    meaning: str = ""
    plot: Markup = Markup("")
    quality: str = ""


def _columns(comparison: BeforeAfter) -> list[tuple[str, str]]:
    """Return (number, interval) of base, tuned and difference; only the difference shows its sign."""
    columns = []
    for measurement, plus in (
        (comparison.base, False),
        (comparison.tuned, False),
        (comparison.difference, True),
    ):
        columns.append((number(measurement.mean, plus), interval_text(measurement, plus)))
    return columns


def _headline_row(headline: Headline, comparison: BeforeAfter, limit: float) -> MetricRow:
    difference = comparison.difference
    verdict = difference.verdict
    direction = {"up": 1, "down": -1}.get(verdict, 0)
    # down times less-is-better is good, as up times more-is-better is
    quality = {1: "better", -1: "worse", 0: "unclear"}[direction * headline.better]
    arrow = {1: "\u25b2 ", -1: "\u25bc ", 0: ""}[direction]
    return MetricRow(
        name=headline.name,
        columns=_columns(comparison),
        verdict=f"{arrow}{verdict}, {quality}" if direction else verdict,
        meaning=headline.meaning,
        plot=interval_plot(
            difference, limit, tone=quality, title=difference_title(headline.name, difference)
        ),
        quality=quality,
    )


def _headline(run: RunData) -> list[MetricRow]:
    headlines = [headline for headline in HEADLINES if headline.metric in run.comparisons]
    differences = [run.comparisons[headline.metric].difference for headline in headlines]
    limit = symmetric_limit(differences)  # one axis for all, so that rows can be compared
    return [_headline_row(headline, run.comparisons[headline.metric], limit) for headline in headlines]


def _rest(run: RunData) -> list[MetricRow]:
    """Return every other compared metric, without judgement, for the collapsed table."""
    headlines = {headline.metric for headline in HEADLINES}
    rows = []
    for metric, comparison in run.comparisons.items():
        if metric not in headlines:
            rows.append(MetricRow(metric, _columns(comparison), comparison.difference.verdict))
    return rows


@dataclass(frozen=True)
class SampleStrip:
    """The images of one prompt.

    Attributes:
        prompt: The prompt.
        subject: Name of the subject; None when it has none.
        reference: The reference image as a data URI; None for a prompt alone.
        target: A true image of the subject in the prompted scene; None when there is none.
        strip: (iteration, image) of every stage.
    """

    prompt: str
    subject: str | None
    reference: str | None
    target: str | None
    strip: Sequence[tuple[int, str]]


@dataclass(frozen=True)
class SampleGallery:
    """The sample images of a run.

    Attributes:
        iterations: The stages of training.
        rows: One for each prompt.
        has_base: Whether the first stage is the base model.
        left_out: Prompts that are not on the page.
    """

    iterations: Sequence[int]
    rows: Sequence[SampleStrip]
    has_base: bool
    left_out: int


def _samples(samples: Samples) -> SampleGallery | None:
    """Return the images as data URIs; None when the base has not been drawn yet."""
    if not samples.iterations or not samples.rows:
        return None
    iterations = evenly(sorted(samples.iterations), MAX_ITERATIONS)
    rows = []
    for index, row in enumerate(samples.rows[:MAX_ROWS]):
        rows.append(
            SampleStrip(
                prompt=row.get("prompt") or "",
                subject=row.get("subject"),
                reference=samples.reference(index),
                target=samples.target(index),
                strip=[(iteration, samples.drawn(index, iteration)) for iteration in iterations],
            )
        )
    return SampleGallery(iterations, rows, iterations[0] == 0, len(samples.rows) - len(rows))
