"""Count a data set, and find faults between its rows that would spoil training or evaluation."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from customized_grpo.data.fitting import cut_note
from customized_grpo.data.image_info import ImageInfo
from customized_grpo.text_limits import CLIP_TOKENS, estimated_tokens


@dataclass(frozen=True)
class Entry:
    """A good row as the survey sees it.

    Attributes:
        where: What to call the row, for example "train.jsonl line 3".
        split: Part of the data set it belongs to; two parts must share neither subjects nor images.
        prompt: Its prompt.
        subject: Its subject.
        references: Its references.
        has_masks: Whether they have masks.
        target: Its target.
    """

    where: str
    split: str
    prompt: str
    subject: str
    references: tuple[ImageInfo, ...]
    has_masks: bool
    target: ImageInfo | None

    def images(self) -> tuple[ImageInfo, ...]:
        """Return the references and the target."""
        return self.references if self.target is None else (*self.references, self.target)


@dataclass(frozen=True)
class Survey:
    """The state of a data set.

    Attributes:
        rows: Good rows by part.
        subjects: Subjects by part.
        all_subjects: Different subjects; one in two parts counts once.
        references_per_row: Number of rows by number of references.
        images: Different images among references and targets.
        sizes: Number of different images by "width x height", the most frequent first.
        masks: Share of rows with masks.
        targets: Share of rows with a target.
        longest_prompt: Tokens of the longest prompt, estimated: each text encoder has a tokenizer of its own.
        long_prompts: Rows whose prompt has more than the 77 tokens that CLIP reads, by the same estimate.
        dropped: Rows that a filter left out, by filter.
        ignored: Files of the source that make no row, by kind.
        problems: What needs action, one sentence each.
        notes: What is good to know, one sentence each.
    """

    rows: Mapping[str, int]
    subjects: Mapping[str, int]
    all_subjects: int
    references_per_row: Mapping[int, int]
    images: int
    sizes: Mapping[str, int]
    masks: float
    targets: float
    longest_prompt: int
    long_prompts: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the survey as JSON."""
        return asdict(self)


def survey(
    entries: Sequence[Entry],
    problems: Sequence[str],
    dropped: Mapping[str, int] | None = None,
    ignored: Mapping[str, int] | None = None,
    size: tuple[int, int] | None = None,
) -> Survey:
    """Count what there is, and add to the problems of single rows those between rows.

    Args:
        entries: The good rows; their info needs digests.
        problems: What was shared wrong with other rows.
        dropped: Rows left out, by filter.
        ignored: Files that make no row, by kind.
        size: Height and width of the images that references shall be cut to, in pixels; None: nothing is cut.
    """
    every_image = itertools.chain.from_iterable(entry.images() for entry in entries)
    # by content: rows name the same file, and copies of it, many times
    images = {image.digest: image for image in every_image}
    sizes = Counter(f"{image.size[0]} x {image.size[1]}" for image in images.values())
    lengths = [estimated_tokens(entry.prompt) for entry in entries]
    subjects: dict[str, set[str]] = {}
    for entry in entries:
        subjects.setdefault(entry.split, set()).add(entry.subject)
    count = max(1, len(entries))
    return Survey(
        rows=dict(Counter(entry.split for entry in entries)),
        subjects={split: len(names) for split, names in subjects.items()},
        all_subjects=len({entry.subject for entry in entries}),
        references_per_row=dict(sorted(Counter(len(entry.references) for entry in entries).items())),
        images=len(images),
        sizes=dict(sizes.most_common()),
        masks=sum(entry.has_masks for entry in entries) / count,
        targets=sum(entry.target is not None for entry in entries) / count,
        longest_prompt=max(lengths, default=0),
        long_prompts=sum(length > CLIP_TOKENS for length in lengths),
        dropped=dict(dropped or {}),
        ignored=dict(ignored or {}),
        notes=_notes(entries, size),
        problems=[*problems, *_copies(entries), *_repeats(entries), *_shared(entries)],
    )


def _notes(entries: Sequence[Entry], size: tuple[int, int] | None) -> list[str]:
    if size is None:
        return []
    references: dict[str, tuple[str, tuple[int, int]]] = {}
    for entry in entries:
        for image in entry.references:
            references.setdefault(image.digest, (f"that of {entry.where}", image.size))
    note = cut_note(references.values(), *size)
    return [] if note is None else [note]


def _copies(entries: Sequence[Entry]) -> list[str]:
    """Return the rows whose target is a reference: only copying could be learnt from them."""
    problems = []
    for entry in entries:
        references = {image.digest for image in entry.references}
        if entry.target is not None and entry.target.digest in references:
            problems.append(f"{entry.where}: the target shows the same pixels as a reference")
    return problems


def _repeats(entries: Sequence[Entry]) -> list[str]:
    """Return the rows with the prompt and the references of an earlier row."""
    first: dict[tuple[str, ...], str] = {}
    repeats = []
    for entry in entries:
        key = (entry.prompt, *(image.digest for image in entry.references))
        earlier = first.setdefault(key, entry.where)
        if earlier != entry.where:
            repeats.append(f"{entry.where}: the same prompt and references as {earlier}")
    return repeats


def _shared(entries: Sequence[Entry]) -> list[str]:
    """Return subjects and images that are in two parts: evaluation would see training data."""
    subjects: dict[str, Entry] = {}
    images: dict[str, Entry] = {}
    shared: dict[str, None] = {}  # an ordered set: a subject or pair of rows is reported once
    for entry in entries:
        other = subjects.setdefault(entry.subject, entry)
        if other.split != entry.split:
            shared[f"subject {entry.subject!r} is in {other.split} and in {entry.split}"] = None
        for image in entry.images():
            other = images.setdefault(image.digest, entry)
            if other.split != entry.split:
                shared[f"{entry.where}: shows an image of {other.where} in {other.split}"] = None
    return list(shared)
