"""`face`: is it the same person? Cosine of ArcFace features; range about -.2 to .9, the same person above .4.

The models are yours to bring: the public ArcFace weights may not be used commercially.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from cachetools import LRUCache
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.onnx_model import Array
from customized_grpo.pixels import to_array, to_uint8
from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.faces import FaceDetector, FaceRecogniser
from customized_grpo.rewards.features import content_key
from customized_grpo.rewards.options import RewardOptions

NAME = "face"
CACHED_REFERENCES = 4096


class FaceOptions(RewardOptions):
    """The two models, and what counts as a face."""

    detector: Annotated[str, Field(min_length=1)]
    """ONNX file that finds faces and their landmarks: YuNet as of 2023."""
    recogniser: Annotated[str, Field(min_length=1)]
    """ONNX file that recognises faces: ArcFace or a similar model, from RGB 112 x 112 to one vector."""
    min_score: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Score of the detector below which something is no face."""


class FaceReward:
    """Cosine similarity in [-1, 1] of the people in each image with those in its references.

    For each reference, its faces are matched with the image's so that the sum of the cosines is largest; a
    person of the reference with no face left to be matched with counts 0, as a stranger would. The mean is
    taken over the people of a reference, then over the references. More people in the image cost nothing.

    Args:
        detector: Finds the faces.
        recogniser: Makes their features.
    """

    kind: Literal["identity"] = "identity"
    name = NAME

    def __init__(self, detector: FaceDetector, recogniser: FaceRecogniser) -> None:
        self.detector = detector
        self.recogniser = recogniser
        self._references: LRUCache[bytes, Array] = LRUCache(CACHED_REFERENCES)

    @classmethod
    def load(cls, options: FaceOptions) -> FaceReward:
        """Load both models; UserError if one does not fit."""
        detector = FaceDetector(Path(options.detector), options.min_score)
        return cls(detector, FaceRecogniser(Path(options.recogniser)))

    def score(self, batch: ScoringBatch) -> Tensor:
        """Return scores [B], fp32, on the CPU; NaN where an image shows no face.

        Raises:
            UserError: A reference is missing or shows no face.
        """
        # The references first: their mistakes are found before any work on the images.
        references = [self._features_of_references(batch, row) for row in range(len(batch))]
        scores = [
            _score(self._features(image), known)
            for image, known in zip(batch.images, references, strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float32)

    def fingerprint(self) -> dict[str, Any]:
        """Return the hashes of both models and what counts as a face."""
        return {
            "name": self.name,
            "kind": self.kind,
            "detector": self.detector.model.sha256,
            "recogniser": self.recogniser.model.sha256,
            "min_score": self.detector.min_score,
        }

    def _features(self, image: Tensor) -> Array:
        """Return unit features [F, D] of the faces in an image [3, H, W] in [0, 1]."""
        pixels_HWC = to_array(to_uint8(image))
        faces = self.detector(pixels_HWC)
        features = [self.recogniser(pixels_HWC, landmarks) for landmarks in faces.landmarks]
        return np.stack(features) if features else np.zeros((0, 0), np.float32)

    def _features_of_references(self, batch: ScoringBatch, row: int) -> list[Array]:
        if not batch.references[row]:
            raise UserError(
                f"reward {self.name!r}: {batch.label(row)} has no reference",
                hint="Name an image of the subject in the row's references, or leave the row out.",
            )
        people = []
        for number, image in enumerate(batch.references[row], start=1):
            key = content_key(to_uint8(image))
            if key not in self._references:
                self._references[key] = self._features(image)
            if not len(self._references[key]):
                raise UserError(
                    f"reward {self.name!r}: reference {number} of {batch.label(row)} shows no face",
                    hint="Leave the row out, give a clearer image, or lower `min_score`.",
                )
            people.append(self._references[key])
        return people


def _score(faces: Array, references: list[Array]) -> float:
    """Return the mean over references of the mean over their people; NaN if the image shows no face."""
    if not len(faces):
        return float("nan")
    return float(np.mean([match(faces, people) for people in references]))


def match(faces: Array, people: Array) -> float:
    """Return the largest sum of cosines of a one-to-one matching of faces [F, D] with people [K, D], / K."""
    # Rectangular where the image shows more or fewer people: the assignment leaves the rest unmatched.
    cosines_KF = people @ faces.T
    pairs = linear_sum_assignment(cosines_KF, maximize=True)
    return float(cosines_KF[pairs].sum() / len(people))
