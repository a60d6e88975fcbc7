"""Rows that choose which of the recipe's rewards score them, by a list `rewards` in their `meta`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from customized_grpo.data.examples import Example, ExampleSource, ManifestSource
from customized_grpo.data.listing import a_few
from customized_grpo.data.mixture import Mixture
from customized_grpo.data.stored_rows import StoredRows
from customized_grpo.errors import UserError, nearest

KEY = "rewards"


def check_choices(train: ExampleSource, held_out: Sequence[Example], names: Sequence[str]) -> None:
    """Refuse choices that name no reward of the recipe.

    Args:
        train: Rows to train on.
        held_out: Rows to evaluate on.
        names: Names of the recipe's rewards, with their labels.

    Raises:
        UserError: Lists the rows.
    """
    mistakes = []
    for row, meta in _metas(train, held_out):
        if KEY in meta and (problem := _problem(meta[KEY], names)) is not None:
            mistakes.append((f"row {row!r}", problem))
    if mistakes:
        lines = "".join(f"\n  {line}" for line in a_few(mistakes))
        raise UserError(
            f"`meta.{KEY}` of {len(mistakes):,} rows does not choose among the recipe's rewards:{lines}",
            hint=f"It is a list of names, such as {list(names)}; a row without it gets all rewards.",
        )


def _metas(train: ExampleSource, held_out: Sequence[Example]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield id and meta of the rows of manifests; no image is opened."""
    # Each part of a mixture is a manifest of its own and may choose for all of its rows.
    parts = train.parts if isinstance(train, Mixture) else []
    for part in parts:
        if part.rewards is not None:
            yield f"all of {_name(part.source)}", {KEY: list(part.rewards)}
    sources = [part.source for part in parts] if parts else [train]
    for source in sources:
        if isinstance(source, ManifestSource) and isinstance(source.rows, StoredRows):
            for item in source.rows.items():
                yield item["id"], item.get("meta") or {}
    for example in held_out:
        yield example.id, example.meta


def _name(source: ManifestSource) -> str:
    return str(source.rows.path) if isinstance(source.rows, StoredRows) else "a manifest"


def _problem(chosen: object, names: Sequence[str]) -> str | None:
    if not isinstance(chosen, list) or not chosen or not all(isinstance(name, str) for name in chosen):
        return "is no list of names, or an empty one"
    unknown = [name for name in chosen if name not in names]
    if not unknown:
        return None
    near = nearest(unknown[0], names)
    return f"{unknown[0]!r} is no reward of the recipe" + (
        "" if near is None else f"; did you mean {near!r}?"
    )
