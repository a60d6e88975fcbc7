"""How numbers were made: what two results must share before anybody may subtract them.

One model (UNO) is published with DINO scores of .760, .814 and .707, by encoder, so a number without its
protocol says nothing. The generator itself is not part of it: that is what is compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from customized_grpo.benchmarks.rows import BenchmarkRow
from customized_grpo.errors import UserError

ReferenceMode = Literal["single", "all"]
Segment = Literal["reference", "none"]

NEGOTIABLE = ("steps", "guidance", "height", "width", "seed")
"""Fields in which results may differ if the user says so: settings that belong to a generator."""


@dataclass(frozen=True)
class GeneratorStamp:
    """Which model drew the pictures.

    Attributes:
        name: As the user calls it: a run, a folder or a hub id.
        weights: Hash of the transformer's weights, adapter included.
    """

    name: str
    weights: str


@dataclass(frozen=True)
class PictureProtocol:
    """What the pictures depend on besides the generator.

    Attributes:
        benchmark: Name of the benchmark.
        data: Hash of its rows and photos, the whole of it, whatever part is evaluated.
        steps: Denoising steps.
        guidance: Guidance scale.
        height: Of the pictures, in pixels.
        width: Likewise.
        seed: Of the initial noise, together with the row's id and the number of the picture.
    """

    benchmark: str
    data: str
    steps: int
    guidance: float
    height: int
    width: int
    seed: int


@dataclass(frozen=True)
class Protocol:
    """How the scores were made.

    Attributes:
        pictures: What the pictures depend on.
        reference_mode: `single`: scored against the reference that was given; `all`: the mean over all
            photos of the subject.
        segment: Whether references were cut out with their masks.
        preprocessing: Who resized the pictures for the encoders.
        encoders: The fingerprint of every encoder, by metric: weights, preprocessing, options.
    """

    pictures: PictureProtocol
    reference_mode: ReferenceMode
    segment: Segment
    preprocessing: str
    encoders: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return the protocol as one flat JSON object."""
        own = {key: value for key, value in asdict(self).items() if key != "pictures"}
        return {**asdict(self.pictures), **own}


def data_hash(rows: Sequence[BenchmarkRow]) -> str:
    """Return the sha256 of ids, prompts, and the bytes of every picture and mask of all rows."""
    digest = hashlib.sha256()
    contents: dict[Any, bytes] = {}
    for row in rows:
        digest.update(repr((row.id, row.prompt, row.subject)).encode())
        for file in (*row.references, *row.photos, *row.masks):
            if file not in contents:
                contents[file] = hashlib.sha256(file.read_bytes()).digest()
            digest.update(contents[file])
    return digest.hexdigest()


def differences(first: Mapping[str, Any], second: Mapping[str, Any], where: str = "") -> list[str]:
    """Return every field in which two JSON objects differ, as "path: this, that"."""
    found = []
    for key in [*first, *(key for key in second if key not in first)]:
        path, one, two = f"{where}{key}", first.get(key), second.get(key)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            found += differences(one, two, f"{path}.")
        elif one != two:
            found.append(f"{path}: {_short(one)}, {_short(two)}")
    return found


def check_across(across: Sequence[str]) -> None:
    """Refuse names of fields in which results must never differ.

    Raises:
        UserError: Names them, and those in which they may.
    """
    if unknown := [name for name in across if name not in NEGOTIABLE]:
        raise UserError(
            f"--across {', '.join(unknown)}: results cannot be compared across that",
            f"They may differ in {', '.join(NEGOTIABLE)}.",
        )


def check_comparable(first: Mapping[str, Any], second: Mapping[str, Any], across: Sequence[str] = ()) -> None:
    """Refuse to subtract numbers of different protocols.

    Args:
        first: A protocol as JSON.
        second: Another.
        across: Fields of `NEGOTIABLE` in which they may differ all the same.

    Raises:
        UserError: They differ in another field; lists all of them.
    """
    one, two = ({k: v for k, v in each.items() if k not in across} for each in (first, second))
    if found := differences(one, two):
        negotiable = sorted({line.split(":")[0] for line in found} & set(NEGOTIABLE))
        hint = "Evaluate both in the same way."
        if negotiable and len(negotiable) == len(found):
            hint = f"If that is meant: {' '.join(f'--across {field}' for field in negotiable)}."
        raise UserError("the two results are of different protocols:\n  " + "\n  ".join(found), hint)


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
