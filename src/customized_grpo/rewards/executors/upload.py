"""A batch as a request to a reward service."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from customized_grpo.pixels import encode_png, to_uint8
from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.features import content_key
from customized_grpo.rewards.service.protocol import Sample, ScoreRequest, to_base64


@dataclass(frozen=True)
class Upload:
    """A request and the files it names.

    Attributes:
        body: The JSON of POST /v1/score.
        files: PNG of every reference and mask, by sha256.
    """

    body: bytes
    files: dict[str, bytes]


def encode(batch: ScoringBatch, reward: str, digest: str) -> Upload:
    """Encode a batch, each distinct reference once.

    Entries of the rows' meta that are not JSON are left out.

    Args:
        batch: The batch.
        reward: Name of the reward in the service.
        digest: Digest of the fingerprint that the scores must come from.
    """
    references = _Files()
    samples = [_sample(batch, row, references) for row in range(len(batch))]
    request = ScoreRequest(reward=reward, digest=digest, samples=samples)
    return Upload(request.model_dump_json().encode(), references.by_sha256)


def _sample(batch: ScoringBatch, row: int, references: _Files) -> Sample:
    masks = batch.reference_masks
    image_mask = None if batch.image_masks is None else _png_text(batch.image_masks[row])
    return Sample(
        image=_png_text(batch.images[row]),
        prompt=batch.prompts[row],
        references=[references.add(image) for image in batch.references[row]],
        reference_masks=None if masks is None else [references.add(mask) for mask in masks[row]],
        image_mask=image_mask,
        # Objects of Python cannot travel; what is JSON goes along.
        meta={key: value for key, value in batch.meta[row].items() if _is_json(value)},
    )


def _png_text(image: Tensor) -> str:
    return to_base64(encode_png(to_uint8(image)))


class _Files:
    """PNGs of images, encoded once per content."""

    def __init__(self) -> None:
        self.by_sha256: dict[str, bytes] = {}
        self._names: dict[bytes, str] = {}

    def add(self, image: Tensor) -> str:
        """Return the sha256 of an image's PNG."""
        pixels = to_uint8(image)
        key = content_key(pixels)
        if key not in self._names:
            png = encode_png(pixels)
            self._names[key] = hashlib.sha256(png).hexdigest()
            self.by_sha256[self._names[key]] = png
        return self._names[key]


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(_is_json(item) for item in value)
    return value is None or isinstance(value, str | int | float)
