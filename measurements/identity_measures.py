"""Identity, copy score and background similarity of true photos: a copy, another view, other subjects.

    python measurements/identity_measures.py path/to/dreambooth                # lite, from packages
    python measurements/identity_measures.py path/to/dreambooth --encoder dino=facebook/dinov2-base

Each photo of DreamBench is a reference once; the next photo of its subject is the target. The generated image
is replaced by the reference itself, by the photo after the target, by a photo of another subject of the same
class, and by one of another class. Prints a Markdown table of means with 95 % intervals by subject.
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
from customized_grpo.data.fitting import resize_cover
from customized_grpo.data.images import open_image, to_tensor
from customized_grpo.rewards import build_reward
from customized_grpo.rewards.similarity import ReferenceSimilarity
from customized_grpo.statistics import monitors
from customized_grpo.statistics.intervals import Interval, clustered_bootstrap

SIDE = 256  # pixels
# of each side: DreamBench has no masks, so the middle of the frame stands for the subject
SUBJECT_SHARE = 0.7
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
        parser.error(f"--encoder {options.encoder} is no encoder of images")
    print(table(measure(read_dreambench(options.data), reward), reward.name))
    return 0


@dataclass(frozen=True)
class Photo:
    """A photo, encoded once for all of its uses.

    Attributes:
        image: [3, SIDE, SIDE].
        features: [D], of length 1.
    """

    image: Tensor
    features: Tensor


def measure(bench: DreamBench, reward: ReferenceSimilarity) -> Measured:
    """Return every measure of every case; a case for which there is no photo is left out.

    Args:
        bench: DreamBench.
        reward: An identity reward without segmentation. Its score of one image and one reference is the
            cosine of their features, and the copy score is made of the same features.
    """
    photos: dict[str, list[Photo]] = {}
    for subject in bench.subjects:
        photos[subject.name] = [_photo(file, reward) for file in subject.photos]
    measured: Measured = {}
    for case in CASES:
        rows = _rows(case, bench, photos)
        if rows:
            subjects = [row.subject for row in rows]
            measured[case] = {}
            for name, values in _values(rows).items():
                measured[case][name] = clustered_bootstrap(values.numpy(), subjects)
    return measured


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        subject: Whose photos reference and target are.
        image: In place of a generated image.
        reference: Given to the generator.
        target: Another view of the subject.
    """

    subject: str
    image: Photo
    reference: Photo
    target: Photo


def _rows(case: str, bench: DreamBench, photos: dict[str, list[Photo]]) -> list[Row]:
    rows = []
    for subject in bench.subjects:
        own = photos[subject.name]
        for number, reference in enumerate(own):
            image = _stand_in(case, bench, subject, number, photos)
            if image is not None:
                rows.append(Row(subject.name, image, reference, own[(number + 1) % len(own)]))
    return rows


def table(measured: Measured, name: str) -> str:
    """Return the measures as a Markdown table."""
    lines = [
        f"| in place of a generated image | photos | identity (`{name}`) | copy score | background |",
        "|---|---|---|---|---|",
    ]
    for case, values in measured.items():
        intervals = [values[name] for name in MEASURES]
        cells = [f"{each.mean:.2f} [{each.low:.2f}, {each.high:.2f}]" for each in intervals]
        lines.append(f"| {case} | {values['identity'].rows} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _photo(file: Path, reward: ReferenceSimilarity) -> Photo:
    image = to_tensor(resize_cover(open_image(file), SIDE, SIDE))
    with torch.no_grad():
        return Photo(image, reward.encoder(image[None].to(reward.device))[0].cpu())


def _stand_in(
    case: str, bench: DreamBench, subject: Subject, number: int, photos: dict[str, list[Photo]]
) -> Photo | None:
    """Return the photo that a case puts in place of a generated image; None if there is none."""
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


def _values(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Return every measure [N] of N rows, in the order of MEASURES."""
    features = torch.stack([row.image.features for row in rows])
    reference_features = torch.stack([row.reference.features for row in rows])
    target_features = torch.stack([row.target.features for row in rows])
    images = torch.stack([row.image.image for row in rows])
    references = torch.stack([row.reference.image for row in rows])
    edge = round(SIDE * (1 - SUBJECT_SHARE) / 2)
    mask = torch.zeros(len(images), SIDE, SIDE)
    mask[:, edge:-edge, edge:-edge] = 1.0
    values = (
        (features * reference_features).sum(1),
        monitors.copy_score(features, reference_features, target_features),
        monitors.background_similarity(images, references, mask, mask),
    )
    return dict(zip(MEASURES, values, strict=True))


if __name__ == "__main__":
    sys.exit(main())
