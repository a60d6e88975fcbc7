"""How well `lite` separates subjects, and `lite_t` classes, on true photos.

    python measurements/lite_identity.py PHOTOS

PHOTOS is the `dataset` folder of DreamBooth's benchmark (github.com/google/dreambooth): a folder of photos
for each subject, and `prompts_and_classes.txt`. Whole photos, no masks. The area under the ROC curve is the
chance that two photos of one subject are more similar than two of different subjects; "same class" keeps only
those different subjects that share a class, such as two dogs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor

from customized_grpo.rewards.lite import LiteReward, LiteTextReward

SIZE = 640  # pixels, of the photos as they are scored


@dataclass(frozen=True)
class Photos:
    """Photos of all subjects.

    Attributes:
        images: [N, 3, SIZE, SIZE] in [0, 1].
        subjects, classes: Of each photo.
    """

    images: Tensor
    subjects: list[str]
    classes: list[str]


def load_photos(folder: Path) -> Photos:
    """Read the dataset; a photo that is not square is squeezed."""
    lines = (folder / "prompts_and_classes.txt").read_text(encoding="utf-8").splitlines()
    class_of: dict[str, str] = {}
    files: list[Path] = []
    for line in lines:
        subject, comma, name = line.partition(",")
        if comma and "," not in name and (folder / subject).is_dir():  # other lines are headings and prompts
            class_of[subject] = name.strip()
            files += (folder / subject).glob("*.jpg")
    files.sort()
    return Photos(
        images=torch.stack([_read(file) for file in files]),
        subjects=[file.parent.name for file in files],
        classes=[class_of[file.parent.name] for file in files],
    )


def identity(photos: Photos) -> dict[str, float]:
    """Return areas under the ROC curve, mean cosines, and the seconds for 16 photos."""
    encoder = LiteReward.load(segment="none").encoder
    start = time.perf_counter()
    with torch.inference_mode():
        features = encoder(photos.images)
    seconds = time.perf_counter() - start
    first, second = np.triu_indices(len(features), 1)
    cosines = (features @ features.T).numpy()[first, second]
    subjects = np.array(photos.subjects)
    classes = np.array(photos.classes)
    same = subjects[first] == subjects[second]
    class_mates = ~same & (classes[first] == classes[second])
    return {
        "photos": len(features),
        "auc": auc(cosines[same], cosines[~same]),
        "auc, same class": auc(cosines[same], cosines[class_mates]),
        "cosine, same subject": float(cosines[same].mean()),
        "cosine, same class": float(cosines[class_mates].mean()),
        "cosine, other subject": float(cosines[~same].mean()),
        "seconds for 16 photos": 16 * seconds / len(features),
    }


def prompts(photos: Photos) -> dict[str, float]:
    """Return how often the right class, as a prompt, scores highest, and the mean scores."""
    names = sorted(set(photos.classes))
    right = torch.tensor([names.index(name) for name in photos.classes])
    reward = LiteTextReward.load()
    with torch.inference_mode():
        agreement = reward.agreement([f"a photo of a {name}" for name in names])
        scores = reward.probabilities(photos.images) @ agreement.T
    own = scores.gather(1, right[:, None]).squeeze(1)
    return {
        "classes": len(names),
        "top-1": float((scores.argmax(1) == right).float().mean()),
        "score, right class": float(own.mean()),
        "score, wrong class": float((scores.sum(1) - own).mean() / (len(names) - 1)),
    }


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the chance that a positive is above a negative; a tie counts half."""
    ranks = rankdata(np.concatenate([positive, negative]))[: len(positive)]
    wins = ranks.sum() - len(positive) * (len(positive) + 1) / 2
    return float(wins / (len(positive) * len(negative)))


def _read(file: Path) -> Tensor:
    image = Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="the folder `dataset` of DreamBooth's benchmark")
    photos = load_photos(parser.parse_args(argv).photos)
    print(json.dumps({"lite": identity(photos), "lite_t": prompts(photos)}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
