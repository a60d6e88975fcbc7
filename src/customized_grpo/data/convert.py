"""Turns a published data set into a folder that is trained on: manifests, images and masks.

    OUT/manifest.jsonl                every row
    OUT/train.jsonl, held_out.jsonl   with --held-out: no subject in both, for data.train and data.held_out
    OUT/images/, OUT/masks/
    OUT/conversion.json               where it came from, with which options, and what was left out

OUT appears whole or not at all, see `files.new_folder`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from customized_grpo import __version__
from customized_grpo.data.adapters.base import Bad, Draft, Dropped, Ignored, Item, Layout, Options
from customized_grpo.data.adapters.names import MaskChoice
from customized_grpo.data.listing import a_few
from customized_grpo.data.manifest import Row, write_manifest
from customized_grpo.data.row_checks import RowProblem, check_writable
from customized_grpo.data.split import HeldOut, split_by_subject, subject_of
from customized_grpo.data.survey import Entry, Survey, survey
from customized_grpo.data.writer import DatasetWriter
from customized_grpo.disk import way_out
from customized_grpo.errors import UserError
from customized_grpo.files import is_free, new_folder, write_text


@dataclass(frozen=True)
class Choices:
    """Choices of a conversion that every layout has.

    Attributes:
        masks: Those of the source, the transparency of the references, or none.
        link: Hard-link images instead of copying them.
        skip_bad: Leave out bad rows instead of refusing the source.
        held_out: Subjects to hold out; None makes no split.
        seed: Seed of the choice of held-out subjects.
    """

    masks: MaskChoice = MaskChoice.shipped
    link: bool = False
    skip_bad: bool = False
    held_out: HeldOut | None = None
    seed: int = 0


@dataclass
class _Collected:
    """What became of the rows of a source."""

    rows: list[Row] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)


def convert(layout: Layout, source: Path, out: Path, options: Options, choices: Choices) -> Survey:
    """Convert a source and return the survey of the new data set.

    Raises:
        UserError: The options do not fit, OUT is in use, the source cannot be read, no row is left, or rows
            are bad (all of them are listed) and may not be skipped. Nothing is left behind then.
    """
    layout.check(options)
    if not is_free(out):
        raise UserError(f"{out} already exists and is not an empty folder", hint="Name a new folder.")
    try:
        with new_folder(out.resolve()) as folder:
            writer = DatasetWriter(folder, link=choices.link)
            collected = _collect(_read(layout, source, options), writer, choices.masks)
            if collected.bad and not choices.skip_bad:
                raise UserError(
                    _bad_listing(source, collected.bad),
                    hint="Leave them out with --skip-bad, or fix the source.",
                )
            if not collected.rows:
                raise UserError(
                    f"{source}: no row is left{_left_out(collected)}",
                    hint="Check that SOURCE is complete, and that no option leaves out too many rows.",
                )
            entries = _write_manifests(folder, collected, choices)
            _write_record(folder / "conversion.json", layout, source, options, choices, collected)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}", hint=way_out(error)) from error
    skipped = {"bad": len(collected.bad)} if collected.bad else {}
    return survey(entries, [], {**collected.dropped, **skipped}, collected.ignored)


def check_source(
    layout: Layout,
    source: Path,
    options: Options,
    masks: MaskChoice,
    size: tuple[int, int] | None = None,
) -> Survey:
    """Return the survey of what a conversion would write, bad rows as problems; nothing is written.

    Args:
        layout: Its layout.
        source: The source.
        options: Options of the layout.
        masks: Where masks come from.
        size: Height and width of the images that references shall be cut to, in pixels; None: nothing is cut.

    Raises:
        UserError: The options do not fit, or the source as a whole cannot be read.
    """
    layout.check(options)
    collected = _collect(_read(layout, source, options), DatasetWriter(source, dry=True), masks)
    problems = [f"row {bad.number}: {bad.reason}" for bad in collected.bad]
    if not collected.rows and not problems:
        problems.append(f"no row is left{_left_out(collected)}")
    return survey(collected.entries, problems, collected.dropped, collected.ignored, size)


def _read(layout: Layout, source: Path, options: Options) -> Iterator[Item]:
    """Yield what a layout reads from a source.

    Raises:
        UserError: As `Layout.read`; also when the disk refuses a file or folder of the source.
    """
    try:
        yield from layout.read(source, options)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or source}: {error.strerror}") from error


def _collect(items: Iterable[Item], writer: DatasetWriter, masks: MaskChoice) -> _Collected:
    collected = _Collected()
    ids: dict[str, int] = {}
    for item in items:
        if isinstance(item, Bad):
            collected.bad.append(item)
        elif isinstance(item, Dropped):
            collected.dropped[item.filter] += 1
        elif isinstance(item, Ignored):
            collected.ignored[item.kind] += 1
        else:
            try:
                first = ids.setdefault(item.id, item.number)
                if first != item.number:
                    raise RowProblem(f"id {item.id!r} was used by row {first} already")
                # before the images are opened, which is the slow part
                check_writable([item.id, item.prompt, item.subject, dict(item.meta)])
                row, entry = _place(item, writer, masks)
            except RowProblem as problem:
                collected.bad.append(Bad(item.number, str(problem)))
            else:
                collected.rows.append(row)
                collected.entries.append(entry)
    return collected


def _place(draft: Draft, writer: DatasetWriter, masks: MaskChoice) -> tuple[Row, Entry]:
    """Place the files of a row; return the row and its entry for the survey."""
    references = [writer.image(reference) for reference in draft.references]
    target = None if draft.target is None else writer.image(draft.target)
    if masks is MaskChoice.alpha:
        mask_files = [writer.alpha_mask(reference) for reference in draft.references]
    elif masks is MaskChoice.shipped:
        pairs = zip(draft.masks, references, strict=True) if draft.masks else ()
        mask_files = [writer.mask(mask, reference) for mask, reference in pairs]
    else:
        mask_files = []
    row = Row(
        id=draft.id,
        prompt=draft.prompt,
        references=tuple(reference.path for reference in references),
        masks=tuple(mask_files),
        target=None if target is None else target.path,
        subject=draft.subject,
        meta={key: value for key, value in draft.meta.items() if value is not None},
    )
    entry = Entry(
        where=f"row {draft.number}",
        split="all",
        prompt=row.prompt,
        subject=subject_of(row),
        references=tuple(reference.info for reference in references),
        has_masks=bool(row.masks),
        target=None if target is None else target.info,
    )
    return row, entry


def _write_manifests(folder: Path, collected: _Collected, choices: Choices) -> list[Entry]:
    """Write the manifests; return the entries with the part of the data set each fell into."""
    write_manifest(folder / "manifest.jsonl", collected.rows)
    if choices.held_out is None:
        return collected.entries
    train, held_out = split_by_subject(collected.rows, choices.held_out, choices.seed)
    write_manifest(folder / "train.jsonl", train)
    write_manifest(folder / "held_out.jsonl", held_out)
    # Only rows know their part; entries of the survey learn it by their subject.
    subjects = {subject_of(row) for row in held_out}
    parts = [
        replace(entry, split="held_out" if entry.subject in subjects else "train")
        for entry in collected.entries
    ]
    return sorted(parts, key=lambda entry: entry.split == "held_out")  # as they are read: train first


def _write_record(
    file: Path, layout: Layout, source: Path, options: Options, choices: Choices, collected: _Collected
) -> None:
    record = {
        "customized_grpo": __version__,
        "layout": layout.name,
        "licence": layout.licence,
        "source": str(source),
        "options": {key: value for key, value in asdict(options).items() if value is not None},
        "choices": asdict(choices),
        "rows": len(collected.rows),
        "dropped": collected.dropped,
        "ignored": collected.ignored,
        "bad": [asdict(bad) for bad in collected.bad],
    }
    write_text(file, json.dumps(record, indent=2, default=str) + "\n")


def _bad_listing(source: Path, bad: list[Bad]) -> str:
    listing = a_few((f"row {item.number}", item.reason) for item in bad)
    lines = "".join(f"\n  {line}" for line in listing)
    return f"{source}: {len(bad):,} bad row{'s' if len(bad) > 1 else ''}{lines}"


def _left_out(collected: _Collected) -> str:
    reasons = [f"{count:,} {name}" for name, count in collected.dropped.most_common()]
    if collected.bad:
        reasons.append(f"{len(collected.bad):,} bad, the first: {collected.bad[0].reason}")
    return f" ({'; '.join(reasons)})" if reasons else ""
