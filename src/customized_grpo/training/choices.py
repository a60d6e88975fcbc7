"""Rows that choose which of the recipe's rewards score them, by a list `rewards` in their `meta`.

And what the rewards need of the rows that they score: references, and words for what is to be found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from customized_grpo.data.examples import Example, ExampleSource, ManifestSource
from customized_grpo.data.listing import a_few
from customized_grpo.data.mixture import Mixture
from customized_grpo.data.stored_rows import StoredRows
from customized_grpo.errors import UserError, nearest
from customized_grpo.evaluation.held_out import Judges
from customized_grpo.evaluation.judges import RewardJudges
from customized_grpo.rewards.base import is_asked, is_asked_by_any, needs_references
from customized_grpo.rewards.executors import Scorer
from customized_grpo.rewards.segmenter import words_of

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


def check_bare_rows(
    train: ExampleSource, held_out: Sequence[Example], scorer: Scorer, judges: Judges | None
) -> None:
    """Refuse rewards and judges that compare with references where rows that they score have none.

    Args:
        train: Rows to train on.
        held_out: Rows to evaluate on, all of which judges score.
        scorer: The training rewards.
        judges: Held-out judges, if there are any.

    Raises:
        UserError: Names them.
    """
    names = [r.name for r in scorer.rewards if r.kind == "identity" or needs_references(r.local_reward)]
    asked: Counter[str] = Counter()
    for told in _told_of_training(train):
        if not told["references"]:
            asked.update(name for name in names if is_asked(name, told))
    bare = [example for example in held_out if not example.bucket]
    for example in bare:
        asked.update(name for name in names if is_asked(name, example.meta))
    for judge in judges.judges if bare and isinstance(judges, RewardJudges) else ():
        if judge.kind == "identity" or needs_references(judge):
            asked[judge.name] += len(bare)
    if asked:
        raise UserError(
            f"{', '.join(asked)} compares with references, which {max(asked.values()):,} rows do not have",
            hint="Leave it out (one kind of reward is plain GRPO), let these rows choose other rewards by "
            f"`{KEY}` in their meta, or name references.",
        )


def check_words(
    train: ExampleSource, held_out: Sequence[Example], names: Sequence[str], *, judged: bool
) -> None:
    """Refuse rows that do not say what is to be found in images that are drawn for them.

    Args:
        train: Rows to train on.
        held_out: Rows to evaluate on.
        names: Names of the rewards that need subjects cut out of drawn images.
        judged: Whether judges need them, of all held-out rows.

    Raises:
        UserError: Lists the rows.
    """
    told = [row for row in _told_of_training(train) if is_asked_by_any(names, row)]
    for example in held_out:
        if judged or is_asked_by_any(names, example.meta):
            told.append({"id": example.id, "subject": example.subject, **example.meta})
    mistakes = []
    for row in told:
        try:
            words_of(row)
        except UserError:
            mistakes.append((f"row {row['id']!r}", "does not say what its subject is"))
    if mistakes:
        lines = "".join(f"\n  {line}" for line in a_few(mistakes))
        raise UserError(
            f"the segmenter has no words for {len(mistakes):,} rows:{lines}",
            hint='Give them a "subject", or "class" in their meta: the words of what is to be found.',
        )


def _told_of_training(train: ExampleSource) -> Iterator[dict[str, Any]]:
    """Yield what rewards are told of each row of manifests, and its references; no image is opened."""
    if isinstance(train, Mixture):
        parts = [(part.source, part.rewards) for part in train.parts]
    else:
        parts = [(train, None)] if isinstance(train, ManifestSource) else []
    for source, rewards in parts:
        for item in source.rows.items() if isinstance(source.rows, StoredRows) else ():
            told = {"id": item["id"], "subject": item.get("subject"), **(item.get("meta") or {})}
            if rewards is not None:
                told.setdefault(KEY, list(rewards))
            yield {**told, "references": item["references"]}


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
