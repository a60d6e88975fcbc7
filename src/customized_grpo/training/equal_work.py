"""Equally many calls of a sharded model in all processes; with unequal ones they would wait for ever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from customized_grpo.data.examples import Bucket, ManifestSource
from customized_grpo.data.fitting import Fitting
from customized_grpo.data.listing import a_few
from customized_grpo.data.stored_rows import StoredRows
from customized_grpo.errors import UserError
from customized_grpo.policies.families import get_family


def check_equal_work(
    family: str, train: Sequence[tuple[StoredRows, Fitting]], held_out: tuple[StoredRows | None, Fitting]
) -> None:
    """Refuse what would make the processes of a sharded model wait for each other for ever.

    Args:
        family: Of the model.
        train: The rows to train on, by manifest, with the size of their references.
        held_out: Those to evaluate on, if there are any.

    Raises:
        UserError: The family's number of calls depends on the texts of a batch; or rows differ in the number
            of references, or in the sizes at which the model sees them.
    """
    if get_family(family).policy_class().CALLS_BY_TEXT:
        raise UserError(
            f"model.shard=true: {family} calls its transformer once for each length of text in a batch, and "
            "the processes of a sharded model must call it equally often",
            hint="Leave model.shard out; model.quantisation=nf4 and model.text_encoders=offload save memory.",
        )
    counts: list[tuple[str, int]] = []
    # Training rows and held-out rows together: both phases call the sharded model.
    for part in (*[rows for rows, _ in train], held_out[0]):
        if part is not None:
            counts += [(f"row {item['id']!r}", len(item["references"])) for item in part.items()]
    # Any row may be the measure: what matters is that all agree.
    first, n_references = counts[0]
    others = [(row, f"{count} references") for row, count in counts if count != n_references]
    if others:
        lines = "".join(f"\n  {line}" for line in a_few(others))
        raise UserError(
            f"{first} has {n_references} references, and {len(others):,} rows have another number:{lines}",
            hint="With model.shard=true all processes call the model equally often, which takes rows with "
            "the same number of references.",
        )
    _check_equal_sizes(train)
    if held_out[0] is not None:
        _check_equal_sizes([(held_out[0], held_out[1])])


def _check_equal_sizes(parts: Sequence[tuple[StoredRows, Fitting]]) -> None:
    """Refuse rows of a sharded model whose references the model sees in different sizes."""
    first: tuple[str, Bucket] | None = None
    others: list[tuple[str, str]] = []
    for name, bucket in _buckets(parts):
        if first is None:
            first = (name, bucket)
        elif bucket != first[1]:
            others.append((f"row {name!r}", _shapes_text(bucket)))
    if first is not None and others:
        lines = "".join(f"\n  {line}" for line in a_few(others))
        raise UserError(
            f"the model sees the references of row {first[0]!r} at {_shapes_text(first[1])} pixels, and "
            f"those of {len(others):,} rows at other sizes:{lines}",
            hint="With model.shard=true all processes call the model equally often, which takes references "
            "of one size: set model.reference_fit=pad, or cut them with model.reference_fit=crop.",
        )


def _buckets(parts: Sequence[tuple[StoredRows, Fitting]]) -> Iterator[tuple[str, Bucket]]:
    """Yield id and bucket of every row; of files the headers are read at most."""
    for rows, fitting in parts:
        if fitting.fit == "whole":  # otherwise all have the size of the drawn image
            for example in ManifestSource(rows, fitting).on_demand(keep=1):
                yield example.id, example.bucket


def _shapes_text(bucket: Bucket) -> str:
    return ", ".join(f"{height} x {width}" for _, height, width in bucket)
