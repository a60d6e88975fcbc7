"""Published numbers, each with its protocol and source: shown beside a result, never subtracted from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("reported_scores.json")


@dataclass(frozen=True)
class PublishedTable:
    """Numbers that one publication gives under one protocol.

    Attributes:
        source: Where they stand.
        protocol: How they were made, as far as the source says.
        columns: Metrics.
        rows: (method, its scores in the order of the columns; None where there is none).
    """

    source: str
    protocol: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, tuple[float | None, ...]]]


def published(benchmark: str) -> list[PublishedTable]:
    """Return what is known of a benchmark, possibly nothing."""
    entries = json.loads(FILE.read_text(encoding="utf-8")).get(benchmark, [])
    return [
        PublishedTable(
            entry["source"],
            entry["protocol"],
            tuple(entry["columns"]),
            [(row["method"], tuple(row["scores"])) for row in entry["rows"]],
        )
        for entry in entries
    ]
