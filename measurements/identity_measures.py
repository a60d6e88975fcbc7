"""What identity, copy score and background similarity say of true photos: a copy, an honest view, others.

    python measurements/identity_measures.py path/to/dreambooth                # lite, from packages
    python measurements/identity_measures.py path/to/dreambooth --encoder dino=facebook/dinov2-base

Each photo of DreamBench is a reference once; the next photo of its subject is the target. In place of a
generated picture stand: the reference itself, the photo after the target, a photo of another subject of the
same class, and one of another class. Prints a Markdown table of means with 95 % intervals by subject.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from customized_grpo.benchmarks.encoders import encoder_configs
from customized_grpo.data.dreambench import DreamBench, Subject, read_dreambench
from customized_grpo.data.images import open_image, resize_cover, to_tensor
from customized_grpo.rewards import build_reward
from customized_grpo.rewards.similarity import ReferenceSimilarity
from customized_grpo.statistics import monitors
from customized_grpo.statistics.intervals import Interval, clustered_bootstrap

SIDE = 256  # pixels
SUBJECT_SHARE = (
    0.7  # of each side: DreamBench has no masks, so the middle of the frame stands for the subject
)
CASES = ("literal copy", "honest other photo", "other subject, same class", "another class")
MEASURES = ("identity", "copy score", "background similarity")

Measured = dict[str, dict[str, Interval]]
"""{case: {measure: its mean with interval}}."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of DreamBench")
    parser.add_argument("--encoder", default="lite", metavar="NAME[=PATH]", help="identity reward")
    options = parser.parse_args(arguments)
    reward = build_reward(encoder_configs([options.encoder], "none")[0])
    if not isinstance(reward, ReferenceSimilarity):
        parser.error(f"--encoder {options.encoder} is no encoder of pictures")
    print(table(measure(read_dreambench(options.data), reward), reward.name))
    return 0


@dataclass(frozen=True)
class Photo:
    """A photo [3, SIDE, SIDE] and its unit features [D], encoded once however often it is used."""

    image: Tensor
    features: Tensor


def measure(bench: DreamBench, reward: ReferenceSimilarity) -> Measured:
    """Return every measure of every case; a case for which there is no photo is left out.

    Args:
        bench: DreamBench.
        reward: An identity reward without segmentation. Its score of one picture and one reference is the
            cosine of their features, and the copy score is made of the same features.
    """
    photos = {subject.name: [_photo(file, reward) for file in subject.photos] for subject in bench.subjects}
    found: Measured = {}
    for case in CASES:
        rows = [
            (subject.name, picture, own[number], own[(number + 1) % len(own)])
            for subject in bench.subjects
            for number, own in ((n, photos[subject.name]) for n in range(len(subject.photos)))
            if (picture := _stand_in(case, bench, subject, number, photos)) is not None
        ]
        if rows:
            names, pictures, references, targets = zip(*rows, strict=True)
            values = _values(pictures, references, targets)
            found[case] = {m: clustered_bootstrap(column.numpy(), names) for m, column in values.items()}
    return found


def table(measured: Measured, name: str) -> str:
    """Return the measures as a Markdown table."""
    lines = [
        f"| in place of a generated picture | photos | identity (`{name}`) | copy score | background |",
        "|---|---|---|---|---|",
    ]
    for case, values in measured.items():
        cells = [f"{values[m].mean:.2f} [{values[m].low:.2f}, {values[m].high:.2f}]" for m in MEASURES]
        lines.append(f"| {case} | {values['identity'].rows} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _photo(file: Path, reward: ReferenceSimilarity) -> Photo:
    image = to_tensor(resize_cover(open_image(file), SIDE, SIDE))
    with torch.no_grad():
        return Photo(image, reward.encoder(image[None].to(reward.device))[0].cpu())


def _stand_in(
    case: str, bench: DreamBench, subject: Subject, number: int, photos: dict[str, list[Photo]]
) -> Photo | None:
    """Return the photo that a case puts in place of a generated picture; None if there is none."""
    own = photos[subject.name]
    if case == "literal copy":
        return own[number]
    if case == "honest other photo":
        return own[(number + 2) % len(own)]
    same = case == "other subject, same class"
    start = bench.subjects.index(subject)
    others = bench.subjects[start + 1 :] + bench.subjects[:start]
    names = [other.name for other in others if (other.noun == subject.noun) == same]
    return photos[names[0]][number % len(photos[names[0]])] if names else None


def _values(
    pictures: Sequence[Photo], references: Sequence[Photo], targets: Sequence[Photo]
) -> dict[str, Tensor]:
    drawn, given, true = (
        torch.stack([photo.features for photo in photos]) for photos in (pictures, references, targets)
    )
    images, backgrounds = (
        torch.stack([photo.image for photo in photos]) for photos in (pictures, references)
    )
    edge = round(SIDE * (1 - SUBJECT_SHARE) / 2)
    mask = torch.zeros(len(images), SIDE, SIDE)
    mask[:, edge:-edge, edge:-edge] = 1.0
    values = (
        (drawn * given).sum(1),
        monitors.copy_score(drawn, given, true),
        monitors.background_similarity(images, backgrounds, mask, mask),
    )
    return dict(zip(MEASURES, values, strict=True))


if __name__ == "__main__":
    sys.exit(main())
