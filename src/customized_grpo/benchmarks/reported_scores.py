"""Scores that publications report, with protocol and source: shown beside results, never subtracted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("reported_scores.json")


@dataclass(frozen=True)
class ReportedTable:
    """Scores that one publication reports under one protocol.

    Attributes:
        source: The publication and the table in it.
        protocol: How the scores were made, as far as the source says.
        columns: Metrics.
        rows: (method, its scores in the order of the columns; None where there is none).
    """

    source: str
    protocol: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, tuple[float | None, ...]]]


def reported_tables(benchmark: str) -> list[ReportedTable]:
    """Return the tables of a benchmark, possibly none."""
    entries = json.loads(FILE.read_text(encoding="utf-8")).get(benchmark, [])
    tables = []
    for entry in entries:
        rows = [(row["method"], tuple(row["scores"])) for row in entry["rows"]]
        tables.append(ReportedTable(entry["source"], entry["protocol"], tuple(entry["columns"]), rows))
    return tables
