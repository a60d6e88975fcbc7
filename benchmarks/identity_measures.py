"""What identity, copy score and background similarity say of true photos: a copy, an honest view, others.

    python benchmarks/identity_measures.py path/to/dreambooth                # lite, from packages
    python benchmarks/identity_measures.py path/to/dreambooth --encoder dino=facebook/dinov2-base

Each photo of DreamBench is a reference once; the next photo of its subject is the target. In place of a
generated picture stand: the reference itself, the photo after the target, a photo of another subject of the
same class, and one of another class. Prints a Markdown table of means with 95 % intervals by subject.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from customized_grpo.benchmarks.encoders import encoder_configs
from customized_grpo.data.dreambench import DreamBench, Subject, read_dreambench
from customized_grpo.data.images import open_image, resize_cover, to_tensor
from customized_grpo.evaluation import monitors
from customized_grpo.evaluation.statistics import Interval, clustered_bootstrap
from customized_grpo.rewards import build_reward
from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.similarity import ReferenceSimilarity

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


def measure(bench: DreamBench, reward: ReferenceSimilarity) -> Measured:
    """Return every measure of every case.

    Args:
        bench: DreamBench.
        reward: An identity reward; its encoder also gives the angles of the copy score.
    """
    photos = {subject.name: [_photo(file) for file in subject.photos] for subject in bench.subjects}
    found: Measured = {}
    for case in CASES:
        rows = [
            (subject, number, picture)
            for subject in bench.subjects
            for number in range(len(subject.photos))
            if (picture := _stand_in(case, bench, subject, number, photos)) is not None
        ]
        if not rows:  # no two subjects of one class
            continue
        subjects = [subject.name for subject, _, _ in rows]
        references = [photos[subject.name][number] for subject, number, _ in rows]
        targets = [photos[subject.name][(number + 1) % len(subject.photos)] for subject, number, _ in rows]
        values = _values(reward, torch.stack([p for *_, p in rows]), references, torch.stack(targets))
        found[case] = {name: clustered_bootstrap(column.numpy(), subjects) for name, column in values.items()}
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


def _photo(file: Path) -> Tensor:
    return to_tensor(resize_cover(open_image(file), SIDE, SIDE))


def _stand_in(
    case: str, bench: DreamBench, subject: Subject, number: int, photos: dict[str, list[Tensor]]
) -> Tensor | None:
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
    reward: ReferenceSimilarity, pictures: Tensor, references: list[Tensor], targets: Tensor
) -> dict[str, Tensor]:
    count = len(pictures)
    batch = ScoringBatch(
        images=pictures,
        prompts=[""] * count,
        references=[[reference] for reference in references],
        reference_masks=None,
        image_masks=None,
        meta=[{}] * count,
    )
    with torch.no_grad():
        features = [
            reward.encoder(images.to(reward.device)).cpu()
            for images in (pictures, torch.stack(references), targets)
        ]
    edge = round(SIDE * (1 - SUBJECT_SHARE) / 2)
    mask = torch.zeros(count, SIDE, SIDE)
    mask[:, edge:-edge, edge:-edge] = 1.0
    background = monitors.background_similarity(pictures, torch.stack(references), mask, mask)
    values = (reward.score(batch), monitors.copy_score(*features), background)
    return dict(zip(MEASURES, values, strict=True))


if __name__ == "__main__":
    sys.exit(main())
