"""The page of a benchmark: means with intervals by prompt type and category, images, protocol, rivals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from customized_grpo.benchmarks.compare import MetricDifference, PairedResult
from customized_grpo.benchmarks.reported_scores import reported_tables
from customized_grpo.benchmarks.results import Result
from customized_grpo.pages.page import data_uri, render, write_page
from customized_grpo.pages.plots.cell_plots import interval_plot
from customized_grpo.pages.plots.numbers import (
    Measurement,
    interval_text,
    number,
    p_text,
    symmetric_limit,
)

METRIC_NAMES = {
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
"""Names of metrics on the page; one that is not here keeps its own name."""

BENCHMARK_NAMES = {
    "dreambench": "DreamBench",
    "dreambenchpp": "DreamBench++",
    "omnicontext": "OmniContext",
    "manifest": "Rows of a manifest",
}


@dataclass(frozen=True)
class SampleImage:
    """An image for the page.

    Attributes:
        prompt: Its prompt.
        subject: The subject of the reference.
        reference: The photo that the generator was given.
        image: The image that it drew.
        scores: Scores by metric; NaN where there is none.
    """

    prompt: str
    subject: str
    reference: Image.Image
    image: Image.Image
    scores: Mapping[str, float]


def write_benchmark_page(
    path: Path, result: Result, paired: PairedResult | None, samples: Sequence[SampleImage]
) -> Path:
    """Write the page of a result and return its path.

    Args:
        path: The HTML file; an older one is replaced.
        result: The result.
        paired: Its comparison with another result, if there is one.
        samples: Images to show.
    """
    return write_page(path, render_benchmark_page(result, paired, samples))


def render_benchmark_page(result: Result, paired: PairedResult | None, samples: Sequence[SampleImage]) -> str:
    """Return the page of a result; the same result gives the same page."""
    reported = []
    for table in reported_tables(result.protocol["benchmark"]):
        reported.append((table, [metric_name(metric) for metric in table.columns]))
    # the first part of a summary is that of all rows, see `Table.groups`
    metrics = list(result.summary[0]["metrics"])
    return render(
        "benchmark.html.j2",
        benchmark=BENCHMARK_NAMES[result.protocol["benchmark"]],
        generator=result.generator["name"],
        facts=_facts(result),
        warnings=result.warnings,
        metrics=[metric_name(metric) for metric in metrics],
        rows=[_row(part, metrics) for part in result.summary],
        comparison=None if paired is None else _comparison(paired),
        samples=[_sample(sample) for sample in samples],
        reported=reported,
        protocol=_flat(result.protocol),
        number=number,
    )


def metric_name(metric: str) -> str:
    """Return the name of a metric on the page."""
    return METRIC_NAMES.get(metric, metric)


def _facts(result: Result) -> list[tuple[str, str]]:
    whole = result.summary[0]
    protocol = result.protocol
    return [
        ("images", f"{whole['images']:,}"),
        ("subjects", str(whole["subjects"])),
        ("compared with", "the given reference" if protocol["reference_mode"] == "single" else "all photos"),
        ("steps", str(protocol["steps"])),
        ("guidance", f"{protocol['guidance']:g}"),
        ("size", f"{protocol['width']} \u00d7 {protocol['height']}"),
        ("seed", str(protocol["seed"])),
        ("weights", result.generator["weights"][:10]),
    ]


def _row(part: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    """Return one part of the summary with the text of its cells."""
    cells = []
    for metric in metrics:
        entry = part["metrics"][metric]
        interval = ""
        if entry["mean"] is not None:
            interval = interval_text(Measurement(entry["mean"], entry["low"], entry["high"]))
        cells.append((number(entry["mean"]), interval))
    name = "All" if part["split"] == "all" else part["name"]
    return {**part, "name": name, "cells": cells}


def _comparison(paired: PairedResult) -> dict[str, Any]:
    measurements = [_measurement(difference) for difference in paired.differences]
    limit = symmetric_limit(measurements)  # one axis for all, so that rows can be compared
    return {
        "before": paired.before,
        "after": paired.after,
        "rows": [_difference_row(difference, limit) for difference in paired.differences],
        "warnings": paired.warnings,
    }


def _measurement(difference: MetricDifference) -> Measurement:
    interval = difference.test.interval
    return Measurement(interval.mean, interval.low, interval.high)


def _difference_row(difference: MetricDifference, limit: float) -> dict[str, Any]:
    measurement = _measurement(difference)
    name = metric_name(difference.metric)
    size = number(measurement.mean, plus=True)
    interval = interval_text(measurement, plus=True)
    title = f"{name}: {size}, 95 % interval {interval}"
    return {
        "name": name,
        "before": number(difference.before),
        "after": number(difference.after),
        "difference": (size, interval),
        "plot": interval_plot(measurement, limit, tone=measurement.tone, title=title),
        "p": p_text(difference.p_holm),
        "tone": measurement.tone,
    }


def _sample(sample: SampleImage) -> dict[str, Any]:
    scores = []
    for metric, value in sample.scores.items():
        scores.append((metric_name(metric), number(None if math.isnan(value) else value)))
    return {
        "prompt": sample.prompt,
        "subject": sample.subject,
        "reference": data_uri(sample.reference),
        "image": data_uri(sample.image),
        "scores": scores,
    }


def _flat(values: Mapping[str, Any], where: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted path, text)."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{where}{key}.")
        else:
            rows.append((f"{where}{key}", str(value)))
    return rows
