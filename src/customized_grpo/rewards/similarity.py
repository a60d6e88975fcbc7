"""The identity rewards: is it the same subject? Cosine of image and reference in an encoder's features."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from customized_grpo.errors import UserError
from customized_grpo.pixels import to_uint8
from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.features import CHUNK, FeatureCache, content_key, weights_hash
from customized_grpo.rewards.matching import crop_to_subject, matched_score
from customized_grpo.rewards.preprocessing import Preprocess

Segment = Literal["reference", "both", "none"]
CACHED_REFERENCES = 4096


@dataclass(frozen=True)
class Encoder:
    """A frozen vision model, its preprocessing and which of its outputs is the feature.

    Attributes:
        model: A transformers model in eval mode, fp32.
        preprocess: Maps images to the model's pixel values.
        pool: Maps (model, pixel values [B, 3, h, w]) to features [B, D].
    """

    model: Any
    preprocess: Preprocess
    pool: Callable[[Any, Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        """Return unit features [B, D], fp32, of images [B, 3, H, W] in [0, 1] on the model's device."""
        with torch.autocast(images.device.type, enabled=False):
            # Without autocast: a score does not depend on the precision of the trainer around it.
            parts = [self.pool(self.model, self.preprocess(part)) for part in images.split(CHUNK)]
        return functional.normalize(torch.cat(parts).float(), dim=-1)


class ReferenceSimilarity:
    """Cosine similarity in [-1, 1] of each image with its references, averaged over the references.

    With `segment="reference"` the background of the references is painted in the encoder's mean colour, which
    normalises to zero, and the images are left alone, as in Customized-GRPO. Copying the reference's
    background then earns nothing, and a literal copy much less than without.

    Args:
        name: Name of the reward.
        encoder: What makes the features.
        segment: Which images are cut out with their masks: the references, both sides, or none.
        device: Where the encoder runs.
    """

    kind: Literal["identity"] = "identity"

    def __init__(self, name: str, encoder: Encoder, *, segment: Segment, device: torch.device | str) -> None:
        self.name = name
        self.encoder = encoder
        self.segment = segment
        self.match = False  # whether each reference shows another subject, see `matching`
        self.device = torch.device(device)
        self._cache = FeatureCache(CACHED_REFERENCES)
        encoder.model.requires_grad_(False).eval().to(self.device)

    @property
    def needs_references(self) -> bool:
        """Return whether each reference is a subject of its own, for which no other photo can stand."""
        return self.match

    def score(self, batch: ScoringBatch) -> Tensor:
        """Return mean cosines [B], fp32, on the CPU; NaN where `image_masks` finds no subject.

        Raises:
            UserError: A reference is missing, or a mask that `segment` needs is missing or empty.
        """
        # image -> how many rows of `references` are its own, one image after the other
        counts = [len(images) for images in batch.references]
        for row, count in enumerate(counts):
            if count == 0:
                raise UserError(
                    f"reward {self.name!r}: {batch.label(row)} has no reference",
                    hint="Name an image of the subject in the row's references, or leave the row out.",
                )
        if self.match:
            return self._score_matched(batch, counts)
        with torch.inference_mode():
            images, is_empty = self._images_for_encoder(batch)
            features = self.encoder(images)
            references = self._reference_features(batch)
            # image b -> one row for each of its references, beside the references of all images in a row
            cosines = (
                features.repeat_interleave(torch.tensor(counts, device=self.device), 0) * references
            ).sum(1)
            # Images may have different numbers of references: split, not reshaped.
            means = torch.stack([part.mean() for part in cosines.split(counts)])
            scores = means.masked_fill(is_empty, float("nan")).cpu()
        return scores.clone()  # a tensor made in inference mode could not take part in a loss

    def fingerprint(self) -> dict[str, Any]:
        """Return name, weights, preprocessing and the segment mode."""
        return {
            "name": self.name,
            "kind": self.kind,
            "model": type(self.encoder.model).__name__,
            "weights": weights_hash(self.encoder.model),
            "preprocess": self.encoder.preprocess.as_json(),
            "dtype": "fp32",
            "segment": self.segment,
            **({"match": True} if self.match else {}),
        }

    def _score_matched(self, batch: ScoringBatch, counts: list[int]) -> Tensor:
        """Return the mean cosine of each image's references with the subjects matched to them [B]."""
        if batch.image_instances is None:
            raise UserError(
                f"reward {self.name!r}: options.match needs the subjects of the generated images",
                hint="Set segmenter={}; a reward behind a service cannot be matched.",
            )
        scores = []
        with torch.inference_mode():
            references = self._reference_features(batch).split(counts)
            for image, masks, known in zip(batch.images, batch.image_instances, references, strict=True):
                crops = [crop_to_subject(image, mask, self._neutral) for mask in masks]
                # No subject: an empty tensor of the right width.
                features = self._encode(crops) if crops else known[:0]
                scores.append(matched_score(features, known))
        return torch.tensor(scores, dtype=torch.float32)

    @property
    def _neutral(self) -> Tensor:
        return torch.tensor(self.encoder.preprocess.mean).view(3, 1, 1)

    def _images_for_encoder(self, batch: ScoringBatch) -> tuple[Tensor, Tensor]:
        """Return (images for the encoder, mask [B] of images without a subject)."""
        images = batch.images.to(self.device)
        if self.segment != "both":
            return images, torch.zeros(len(batch), dtype=torch.bool, device=self.device)
        if batch.image_masks is None:
            raise UserError(
                f"reward {self.name!r}: segment: both needs masks of the generated images",
                hint="Use segment: reference, as Customized-GRPO does.",
            )
        masks = batch.image_masks.to(self.device, torch.float32)
        return self._cut_out(images, masks), masks.amax(dim=(1, 2, 3)) == 0

    def _reference_features(self, batch: ScoringBatch) -> Tensor:
        """Return features [number of references, D]; a reference is encoded once, however often used."""
        # rows of references -> one list; `counts` leads back
        images = list(itertools.chain.from_iterable(batch.references))
        if self.segment == "none":
            keys = [content_key(to_uint8(image)) for image in images]
            return self._cache.get(keys, lambda rows: self._encode([images[i] for i in rows]))
        masks = self._reference_masks(batch)
        # By content, not by row: rows of one subject share references, and the mask is part of the content.
        keys = [content_key(to_uint8(image), mask) for image, mask in zip(images, masks, strict=True)]
        return self._cache.get(
            keys, lambda rows: self._encode([self._seen(images[i], masks[i]) for i in rows])
        )

    def _seen(self, image: Tensor, mask: Tensor) -> Tensor:
        """Return a reference as the encoder sees it: cut out, and if subjects are matched, from near by."""
        if self.match:
            # soft edges, and the noise of a JPEG, are no part of its box
            inside = mask[0] >= 0.5
            return crop_to_subject(image, inside if bool(inside.any()) else mask[0] > 0, self._neutral)
        return self._cut_out(image, mask)

    def _encode(self, images: list[Tensor]) -> Tensor:
        """Encode images of any sizes, those of one size together."""
        by_size: dict[torch.Size, list[int]] = {}
        for number, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(number)
        features: dict[int, Tensor] = {}
        for numbers in by_size.values():
            # `numbers` are places among all images, rows of `stacked` are places within one size.
            stacked = torch.stack([images[number].to(self.device) for number in numbers])
            features |= dict(zip(numbers, self.encoder(stacked), strict=True))
        return torch.stack([features[number] for number in range(len(images))])

    def _cut_out(self, images: Tensor, masks: Tensor) -> Tensor:
        """Paint the outside of the mask in the encoder's mean colour."""
        neutral = torch.tensor(self.encoder.preprocess.mean, device=images.device).view(3, 1, 1)
        masks = masks.to(images)
        return images * masks + neutral * (1 - masks)

    def _reference_masks(self, batch: ScoringBatch) -> list[Tensor]:
        all_masks: list[Tensor] = []
        for row, images in enumerate(batch.references):
            masks = batch.reference_masks[row] if batch.reference_masks is not None else []
            if len(masks) != len(images):
                raise UserError(
                    f"reward {self.name!r}: {batch.label(row)} has {len(images)} references, "
                    f"{len(masks)} masks",
                    hint="Give every reference a mask, or score whole references with segment: none.",
                )
            for image, mask in zip(images, masks, strict=True):
                if mask.shape != (1, *image.shape[1:]):
                    raise UserError(
                        f"reward {self.name!r}: {batch.label(row)} has a mask of {list(mask.shape)} "
                        f"for a reference of {list(image.shape)}",
                        hint="Make the mask as large as its reference.",
                    )
                if not bool((mask > 0).any()):
                    raise UserError(
                        f"reward {self.name!r}: {batch.label(row)} has an empty reference mask",
                        hint="Mark the subject in it, or score whole references with segment: none.",
                    )
            all_masks.extend(masks)
        return all_masks
