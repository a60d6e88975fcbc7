"""Rows that give the processes of a sharded model equally many calls of it; others would wait for ever."""

from __future__ import annotations

from collections.abc import Mapping

from customized_grpo.data.examples import Bucket, ManifestSource
from customized_grpo.data.fitting import Fitting
from customized_grpo.data.listing import a_few
from customized_grpo.data.stored_rows import StoredRows
from customized_grpo.errors import UserError


def check_equal_work(parts: Mapping[StoredRows | None, Fitting]) -> None:
    """Refuse rows that would make the processes of a sharded model wait for each other for ever.

    Args:
        parts: The rows to train on and those to evaluate on, each with the size of their references.

    Raises:
        UserError: Rows differ in the number of references, or in the sizes at which the model sees them.
    """
    counts: list[tuple[str, int]] = []
    for part in parts:
        if part is not None:
            counts += [(f"row {item['id']!r}", len(item["references"])) for item in part.items()]
    first, n_references = counts[0]
    others = [(row, f"{count} references") for row, count in counts if count != n_references]
    if others:
        lines = "".join(f"\n  {line}" for line in a_few(others))
        raise UserError(
            f"{first} has {n_references} references, and {len(others):,} rows have another number:{lines}",
            hint="With model.shard=true all processes call the model equally often, which takes rows with "
            "the same number of references.",
        )
    for part, fitting in parts.items():
        if part is not None and fitting.fit == "whole":
            _check_equal_sizes(part, fitting)


def _check_equal_sizes(rows: StoredRows, fitting: Fitting) -> None:
    """Refuse rows of a sharded model whose references the model sees in different sizes."""
    first: tuple[str, Bucket] | None = None
    others: list[tuple[str, str]] = []
    for example in ManifestSource(rows, fitting).on_demand(keep=1):
        if first is None:
            first = (example.id, example.bucket)
        elif example.bucket != first[1]:
            others.append((f"row {example.id!r}", _shapes_text(example.bucket)))
    if first is not None and others:
        lines = "".join(f"\n  {line}" for line in a_few(others))
        raise UserError(
            f"the model sees the references of row {first[0]!r} at {_shapes_text(first[1])} pixels, and "
            f"those of {len(others):,} rows at other sizes:{lines}",
            hint="With model.shard=true all processes call the model equally often, which takes references "
            "of one size: set model.reference_fit=pad, or cut them with model.reference_fit=crop.",
        )


def _shapes_text(bucket: Bucket) -> str:
    return ", ".join(f"{height} x {width}" for _, height, width in bucket)
