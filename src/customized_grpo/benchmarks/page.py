"""The page of a benchmark: means with intervals by prompt type and category, pictures, protocol, rivals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from customized_grpo.benchmarks.compare import Comparison
from customized_grpo.benchmarks.reported_scores import published
from customized_grpo.benchmarks.results import Result
from customized_grpo.pages.page import data_uri, environment, write_page
from customized_grpo.pages.plots.cells import interval_plot
from customized_grpo.pages.plots.numbers import Interval, interval_text, number

METRICS = {
    "dino_v1": "DINO",
    "dino": "DINOv2",
    "clip_i": "CLIP-I",
    "clip_t": "CLIP-T",
    "lite": "Identity (lite)",
    "lite_t": "Prompt (lite)",
    "cp": "Concept preservation",
    "sc": "Subject consistency",
    "pf": "Prompt following",
    "cp_x_pf": "CP \u00d7 PF",
    "sqrt_pf_sc": "\u221a(PF \u00d7 SC)",
}
"""How metrics are called on the page; one that is not here keeps its own name."""

BENCHMARK_NAMES = {
    "dreambench": "DreamBench",
    "dreambenchpp": "DreamBench++",
    "omnicontext": "OmniContext",
    "manifest": "Rows of a manifest",
}


@dataclass(frozen=True)
class Shown:
    """A picture for the page.

    Attributes:
        prompt: Its prompt.
        subject: Whose photo was given.
        reference: That photo.
        picture: What was drawn.
        scores: By metric; NaN where there is none.
    """

    prompt: str
    subject: str
    reference: Image.Image
    picture: Image.Image
    scores: Mapping[str, float]


def write_benchmark_page(
    path: Path, result: Result, comparison: Comparison | None, shown: Sequence[Shown]
) -> Path:
    """Write the page of a result and return its path."""
    return write_page(path, render_benchmark(result, comparison, shown))


def render_benchmark(result: Result, comparison: Comparison | None, shown: Sequence[Shown]) -> str:
    """The page of a result; the same result gives the same page."""
    metrics = list(result.summary[0]["metrics"])
    return (
        environment()
        .get_template("benchmark.html.j2")
        .render(
            benchmark=BENCHMARK_NAMES[result.protocol["benchmark"]],
            generator=result.generator["name"],
            facts=_facts(result),
            warnings=result.warnings,
            metrics=[METRICS.get(metric, metric) for metric in metrics],
            rows=[_row(part, metrics) for part in result.summary],
            comparison=None if comparison is None else _comparison(comparison),
            samples=[_sample(one) for one in shown],
            published=[
                (table, [METRICS.get(m, m) for m in table.columns])
                for table in published(result.protocol["benchmark"])
            ],
            protocol=_flat(result.protocol),
            number=number,
        )
    )


def _facts(result: Result) -> list[tuple[str, str]]:
    whole, protocol = result.summary[0], result.protocol
    return [
        ("pictures", f"{whole['pictures']:,}"),
        ("subjects", str(whole["subjects"])),
        ("compared with", "the given reference" if protocol["reference_mode"] == "single" else "all photos"),
        ("steps", str(protocol["steps"])),
        ("guidance", f"{protocol['guidance']:g}"),
        ("size", f"{protocol['width']} \u00d7 {protocol['height']}"),
        ("seed", str(protocol["seed"])),
        ("weights", result.generator["weights"][:10]),
    ]


def _row(part: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    cells = []
    for metric in metrics:
        found = part["metrics"][metric]
        span = None if found["mean"] is None else Interval(found["mean"], found["low"], found["high"])
        cells.append((number(found["mean"]), "" if span is None else interval_text(span)))
    name = "All" if part["split"] == "all" else part["name"]
    return {**part, "name": name, "cells": cells}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    spans = {
        one.metric: Interval(one.test.interval.mean, one.test.interval.low, one.test.interval.high)
        for one in comparison.differences
    }
    ends = [abs(end) for span in spans.values() for end in (span.low, span.high) if end is not None]
    limit = max(ends, default=0.0) * 1.1 or 1.0
    rows = []
    for one in comparison.differences:
        span, name = spans[one.metric], METRICS.get(one.metric, one.metric)
        tone = {"up": "better", "down": "worse"}.get(span.verdict, "unclear")
        title = f"{name}: {number(span.mean, True)}, 95 % interval {interval_text(span, True)}"
        rows.append(
            {
                "name": name,
                "before": number(one.before),
                "after": number(one.after),
                "difference": (number(span.mean, True), interval_text(span, True)),
                "plot": interval_plot(span.mean, span.low, span.high, limit, tone=tone, title=title),
                "p": _p(one.p_holm),
                "tone": tone,
            }
        )
    return {
        "before": comparison.before,
        "after": comparison.after,
        "rows": rows,
        "warnings": comparison.warnings,
    }


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}"


def _sample(one: Shown) -> dict[str, Any]:
    return {
        "prompt": one.prompt,
        "subject": one.subject,
        "reference": data_uri(one.reference),
        "picture": data_uri(one.picture),
        "scores": [
            (METRICS.get(metric, metric), number(None if math.isnan(value) else value))
            for metric, value in one.scores.items()
        ],
    }


def _flat(values: Mapping[str, Any], where: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted path, text)."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{where}{key}.")
        else:
            found.append((f"{where}{key}", str(value)))
    return found
