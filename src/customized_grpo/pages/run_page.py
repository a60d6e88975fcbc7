"""The report of a run: one HTML page that holds everything, for people who were not there."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from customized_grpo.errors import UserError
from customized_grpo.pages.page import TEMPLATES, data_uri, environment, write_page
from customized_grpo.pages.plots.cells import interval_plot
from customized_grpo.pages.plots.numbers import Interval, interval_text, number
from customized_grpo.pages.plots.scales import compact
from customized_grpo.pages.run_data import Comparison, RunData, Samples, read_run
from customized_grpo.pages.run_figures import sections
from customized_grpo.reporting.progress import duration

MAX_ROWS = 12
MAX_ITERATIONS = 9


@dataclass(frozen=True)
class Headline:
    """How a metric is named and read: `better` is +1 when up is good, -1 when down is."""

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
        "Share of what the prompt asks for that classifiers find in the picture.",
        +1,
    ),
    Headline(
        "monitor/copy_score",
        "Copy score",
        "0 is an honest new picture, 1 is the reference pasted. Lower is better.",
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
    return write_page(run_dir / "report.html", render(read_run(run_dir)))


def render(run: RunData) -> str:
    """The page of a run."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            state=_state(run),
            facts=_facts(run),
            findings=findings(run),
            headline=_headline(run),
            rest=_rest(run),
            sections=sections(run),
            samples=_samples(run.samples) if run.samples is not None else None,
            script=Markup(script),
            script_hash=digest,
        )
    )


def _state(run: RunData) -> str:
    iteration, total = run.last.get("iteration", 0), run.setting("train.iterations")
    if run.summary.get("finished"):
        return "finished"
    return f"unfinished: iteration {iteration} of {total if total is not None else '?'}"


def _facts(run: RunData) -> list[tuple[str, str]]:
    """(name, value) of what identifies the run at a glance; only what is known."""
    last, wall = run.last, run.summary.get("wall_s", run.last.get("wall_s"))
    rollouts = run.summary.get("rollouts", last.get("rollouts"))
    rate = run.setting("train.learning_rate")
    facts: list[tuple[str, Any]] = [
        ("advantage", run.setting("advantage.name")),
        ("gamma", run.setting("advantage.options.gamma")),
        ("schedule", run.setting("schedule.name")),
        ("sampler", run.setting("rollout.sampler")),
        ("steps", run.setting("rollout.steps")),
        ("group size", run.setting("train.group_size")),
        ("learning rate", compact(rate) if isinstance(rate, int | float) else None),
        ("iterations", last.get("iteration")),
        ("rollouts", f"{rollouts:,}" if isinstance(rollouts, int) else None),
        ("time", duration(wall) if isinstance(wall, int | float) else None),
        ("seed", run.summary.get("seed", run.setting("run.seed"))),
        ("device", run.summary.get("device", run.setting("model.device"))),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


def _row(comparison: Comparison, name: str, meaning: str, better: int, limit: float) -> dict[str, Any]:
    difference = comparison.difference
    verdict = difference.verdict
    sign = {"up": 1, "down": -1}.get(verdict, 0) * better
    quality = {1: "better", -1: "worse", 0: "unclear"}[sign]
    arrow = {"up": "\u25b2 ", "down": "\u25bc "}.get(verdict, "")
    words = f"{arrow}{verdict}" + (f", {quality}" if sign else "")
    title = (
        f"{name}: difference {number(difference.mean, True)}, 95 % interval {interval_text(difference, True)}"
    )
    return {
        "name": name,
        "meaning": meaning,
        "columns": [
            (number(part.mean, plus), interval_text(part, plus))
            for part, plus in ((comparison.base, False), (comparison.tuned, False), (difference, True))
        ],
        "plot": interval_plot(
            difference.mean, difference.low, difference.high, limit, tone=quality, title=title
        ),
        "verdict": words,
        "quality": quality,
    }


def _limit(comparisons: Sequence[Comparison]) -> float:
    """Half the width of the difference plots, the same for all rows so that they can be compared."""
    parts = [comparison.difference for comparison in comparisons]
    ends = [abs(v) for part in parts for v in (part.mean, part.low, part.high) if v is not None]
    return max(ends, default=0.0) * 1.1 or 1.0


def _headline(run: RunData) -> list[dict[str, Any]]:
    shown = [(head, run.comparisons[head.metric]) for head in HEADLINES if head.metric in run.comparisons]
    limit = _limit([comparison for _, comparison in shown])
    return [_row(comparison, head.name, head.meaning, head.better, limit) for head, comparison in shown]


def _rest(run: RunData) -> list[dict[str, Any]]:
    """Every other compared metric, without judgement, for the collapsed table."""
    known = {head.metric for head in HEADLINES}
    shown = [comparison for metric, comparison in run.comparisons.items() if metric not in known]
    return [
        {
            "name": comparison.metric,
            "columns": [
                (number(part.mean, plus), interval_text(part, plus))
                for part, plus in (
                    (comparison.base, False),
                    (comparison.tuned, False),
                    (comparison.difference, True),
                )
            ],
            "verdict": comparison.difference.verdict,
        }
        for comparison in shown
    ]


def findings(run: RunData) -> list[str]:
    """The result in sentences that do not say more than the intervals do."""
    sentences = []
    for head in HEADLINES[:2]:
        comparison = run.comparisons.get(head.metric)
        if comparison is not None:
            sentences.append(_sentence(head.name, comparison.difference))
    sentences += _degradation(run)
    return sentences


def _sentence(name: str, difference: Interval) -> str:
    size = number(difference.mean, plus=True)
    if difference.verdict == "no interval":
        return f"{name} stands at {size} against the base so far; no paired interval has been computed yet."
    words = {"up": "rose by", "down": "fell by"}.get(difference.verdict)
    span = f"(95 % interval {interval_text(difference, plus=True)})"
    if words is None:
        return f"{name} cannot be told from the base: {size} {span}."
    return f"{name} {words} {number(abs(difference.mean))} {span}."


def _degradation(run: RunData) -> list[str]:
    """Competitive degradation: identity reward up and held-out prompt accuracy down, both beyond chance."""
    reward, judge = run.comparisons.get("reward/identity"), run.comparisons.get("judge/prompt")
    if (
        reward is None
        or judge is None
        or "no interval" in (reward.difference.verdict, judge.difference.verdict)
    ):
        return []
    if reward.difference.verdict == "up" and judge.difference.verdict == "down":
        return [
            "Competitive degradation: the identity reward rose while held-out prompt accuracy fell, "
            "both with intervals that exclude 0."
        ]
    return [
        "No competitive degradation was found: that would be the identity reward up while held-out prompt "
        "accuracy falls."
    ]


def _samples(samples: Samples) -> dict[str, Any] | None:
    """Rows of pictures as data URIs; None when the base has not been drawn yet."""
    if not samples.iterations or not samples.rows:
        return None
    iterations = evenly(sorted(samples.iterations), MAX_ITERATIONS)
    rows = []
    for number_, row in enumerate(samples.rows[:MAX_ROWS]):
        strip = [
            (iteration, _data_uri(samples.folder, f"iteration_{iteration:06d}/{number_:02d}.png"))
            for iteration in iterations
        ]
        rows.append(
            {
                "prompt": row.get("prompt") or "",
                "subject": row.get("subject"),
                "reference": _data_uri(samples.folder, row.get("reference")),
                "target": _data_uri(samples.folder, row.get("target")) if row.get("target") else None,
                "strip": strip,
            }
        )
    return {
        "iterations": iterations,
        "rows": rows,
        "has_base": iterations[0] == 0,
        "left_out": len(samples.rows) - len(rows),
    }


def evenly(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of the values, evenly spaced, always with the first and the last."""
    if len(values) <= count:
        return list(values)
    return [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]


def _data_uri(folder: Path, name: str | None) -> str:
    """A PNG of the samples folder as a data URI, scaled down where it is large.

    Raises:
        UserError: The file is absent, not a PNG, or outside the folder.
    """
    path = folder / (name or "")
    if not name or not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise UserError(f"{folder / 'index.json'} lists {name!r}, which is no picture in {folder}")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return data_uri(image.convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as PNG: {error}") from error
