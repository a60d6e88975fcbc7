"""The protocol of a result: the fields that two results must share before they may be subtracted.

One model (UNO) is published with DINO scores of .760, .814 and .707, by encoder, so a number without its
protocol says nothing. The generator itself is not part of it, because it is the thing to compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from customized_grpo.benchmarks.rows import BenchmarkRow
from customized_grpo.data.fitting import Fit
from customized_grpo.errors import UserError
from customized_grpo.reference_sizes import ReferenceSize

ReferenceMode = Literal["single", "all"]
Segment = Literal["reference", "none"]

NEGOTIABLE = ("steps", "guidance", "height", "width", "seed", "reference_fit", "reference_size")
"""Fields in which results may differ if the user says so: settings that belong to a generator."""


@dataclass(frozen=True)
class GeneratorStamp:
    """The model that drew the images.

    Attributes:
        name: Its name as the user gave it: a run, a folder or a hub id.
        weights: Hash of the transformer's weights, adapter included.
    """

    name: str
    weights: str


@dataclass(frozen=True)
class ImageProtocol:
    """The settings that the images depend on, besides the generator.

    Attributes:
        benchmark: Name of the benchmark.
        data: Hash of all its rows and photos, even if only some rows are evaluated.
        steps: Denoising steps.
        guidance: Guidance scale.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        seed: Seed of the initial noise, together with the row's id and the number of the image.
        reference_fit: Whether references kept their aspect, were cut, or got a border.
        reference_size: Size of those that kept their aspect.
    """

    benchmark: str
    data: str
    steps: int
    guidance: float
    height: int
    width: int
    seed: int
    # as results of earlier versions, which lack these two, were drawn
    reference_fit: Fit = "crop"
    reference_size: ReferenceSize = "image"


@dataclass(frozen=True)
class Protocol:
    """How the scores were made.

    Attributes:
        images: The settings that the images depend on.
        reference_mode: `single`: scored against the reference that was given; `all`: the mean over all
            photos of the subject.
        segment: Whether references were cut out with their masks.
        preprocessing: Library and version that resized the images for the encoders.
        encoders: The fingerprint of every encoder, by metric: weights, preprocessing, options.
    """

    images: ImageProtocol
    reference_mode: ReferenceMode
    segment: Segment
    preprocessing: str
    encoders: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return the protocol as one flat JSON object."""
        own = {key: value for key, value in asdict(self).items() if key != "images"}
        return {**asdict(self.images), **own}


def data_hash(rows: Sequence[BenchmarkRow]) -> str:
    """Return the SHA-256 of ids, prompts, and the bytes of every image and mask of all rows."""
    digest = hashlib.sha256()
    contents: dict[Any, bytes] = {}
    for row in rows:
        # repr keeps the parts apart: joined texts would be equal for "ab", "c" and "a", "bc"
        digest.update(repr((row.id, row.prompt, row.subject)).encode())
        for file in (*row.references, *row.photos, *row.masks):
            # rows of one subject share photos, which are read once
            if file not in contents:
                contents[file] = hashlib.sha256(file.read_bytes()).digest()
            digest.update(contents[file])
    return digest.hexdigest()


def differences(first: Mapping[str, Any], second: Mapping[str, Any], where: str = "") -> list[str]:
    """Return every field in which two JSON objects differ, as "path: this, that"."""
    lines = []
    # a set that keeps the order, so that messages list fields as the protocol does
    for key in dict.fromkeys([*first, *second]):
        path = f"{where}{key}"
        one = first.get(key)
        two = second.get(key)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            lines += differences(one, two, f"{path}.")
        elif one != two:
            lines.append(f"{path}: {_short(one)}, {_short(two)}")
    return lines


def check_across(across: Sequence[str]) -> None:
    """Refuse names of fields in which results must never differ.

    Raises:
        UserError: Names them, and those in which they may.
    """
    refused = [name for name in across if name not in NEGOTIABLE]
    if refused:
        raise UserError(
            f"--across {', '.join(refused)}: results cannot be compared across that",
            hint=f"They may differ in {', '.join(NEGOTIABLE)}.",
        )


def check_comparable(first: Mapping[str, Any], second: Mapping[str, Any], across: Sequence[str] = ()) -> None:
    """Refuse to subtract numbers of different protocols.

    Args:
        first: A protocol as JSON.
        second: Another.
        across: Fields of `NEGOTIABLE` in which they may differ.

    Raises:
        UserError: They differ in another field; lists all of them.
    """
    one = {key: value for key, value in first.items() if key not in across}
    two = {key: value for key, value in second.items() if key not in across}
    lines = differences(one, two)
    if not lines:
        return
    # what stands before the colon is the path, see `differences`
    fields = {line.split(":")[0] for line in lines}
    hint = "Evaluate both in the same way."
    # advice only where it is enough: with another difference they would be refused again
    if fields <= set(NEGOTIABLE):
        options = [f"--across {field}" for field in sorted(fields)]
        hint = f"To compare them with these differences: {' '.join(options)}."
    raise UserError("the two results are of different protocols:\n  " + "\n  ".join(lines), hint=hint)


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
