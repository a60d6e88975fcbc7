"""Masks of subjects in generated images, found by words: GroundingDINO finds boxes, SAM cuts them out.

Identity rewards with `segment: both` need them, and those that match several subjects. The words are the
class of a row's subject, see `words_of`. The models are those of transformers (GroundingDINO, arXiv
2303.05499; SAM, arXiv 2304.02643), with their own preprocessing; what a box misses is background.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.libraries import quiet
from customized_grpo.pixels import to_pil
from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.features import weights_hash
from customized_grpo.rewards.loading import load_model
from customized_grpo.weights.models import explained

if TYPE_CHECKING:
    from customized_grpo.config.segmenter import SegmenterConfig

MAX_BOXES = 16
"""Boxes of one image that are cut out, those of the highest scores."""


@dataclass(frozen=True)
class Found:
    """What was found in one image.

    Attributes:
        boxes: Left, top, right and bottom of each of the M boxes in pixels, [M, 4]; best first.
        masks: The subject in each box, bool [M, H, W].
    """

    boxes: Tensor
    masks: Tensor

    @property
    def union(self) -> Tensor:
        """Return where any subject is, fp32 [1, H, W] in {0, 1}."""
        return self.masks.any(dim=0, keepdim=True).float()


class TextSegmenter:
    """Finds subjects in images by words.

    Args:
        detector: A GroundingDinoForObjectDetection and its processor.
        cutter: A SamModel and its processor.
        min_score: Score of the detector below which a box is no subject.
        device: Where both run.
    """

    def __init__(
        self,
        detector: tuple[Any, Any],
        cutter: tuple[Any, Any],
        min_score: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self.detector, self.detector_processor = detector
        self.cutter, self.cutter_processor = cutter
        self.min_score = min_score
        self.device = torch.device(device)
        for model in (self.detector, self.cutter):
            model.requires_grad_(False).eval().to(self.device)

    @classmethod
    def load(cls, config: SegmenterConfig, device: torch.device | str = "cpu") -> TextSegmenter:
        """Load both models.

        Raises:
            UserError: One is missing, or of another class.
        """
        with quiet(["transformers"]):
            from transformers import (
                GroundingDinoForObjectDetection,
                GroundingDinoProcessor,
                SamModel,
                SamProcessor,
            )

        detector = _load(config.detector, GroundingDinoForObjectDetection, GroundingDinoProcessor)
        cutter = _load(config.cutter, SamModel, SamProcessor)
        return cls(detector, cutter, config.min_score, device)

    def with_masks(self, batch: ScoringBatch, wanted: Sequence[bool] | None = None) -> ScoringBatch:
        """Return the batch with what was found in its images; masks are all 0 where that is nothing.

        Args:
            batch: The images.
            wanted: Which of them to look at; None: all. In the others nothing is found.
        """
        found = []
        for row, (image, meta) in enumerate(zip(batch.images, batch.meta, strict=True)):
            if wanted is None or wanted[row]:
                found.append(self.find(image, words_of(meta)))
            else:
                found.append(_nothing(image))
        masks = torch.stack([one.union for one in found])
        instances = [one.masks for one in found]
        # The union for rewards of one subject, the single masks for those that match several.
        return replace(batch, image_masks=masks.to(batch.images.device), image_instances=instances)

    @torch.inference_mode()
    def find(self, image: Tensor, words: str) -> Found:
        """Return the subjects in an image [3, H, W] in [0, 1]; one image at a time, whatever its batch."""
        boxes = self._boxes(image, words)
        if not len(boxes):
            return _nothing(image)
        inputs = self.cutter_processor(
            images=[to_pil(image)], input_boxes=[boxes.tolist()], return_tensors="pt"
        )
        with torch.autocast(self.device.type, enabled=False):
            outputs = self.cutter(
                pixel_values=inputs["pixel_values"].to(self.device),
                input_boxes=inputs["input_boxes"].to(self.device, torch.float32),
                multimask_output=False,
            )
        (masks,) = self.cutter_processor.post_process_masks(
            outputs.pred_masks.cpu(), inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )
        masks = masks[:, 0]  # [M, 1, H, W]: one mask for each box, as multimask_output is off
        # a box in which nothing is cut out holds no subject; it would count as one of the size of the image
        is_cut = masks.flatten(1).any(dim=1)
        return Found(boxes[is_cut], masks[is_cut])

    def _boxes(self, image: Tensor, words: str) -> Tensor:
        """Return the boxes [M, 4] of the words in an image, best first."""
        inputs = self.detector_processor(images=[to_pil(image)], text=words, return_tensors="pt")
        inputs = inputs.to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            outputs = self.detector(**inputs)
        (found,) = self.detector_processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], threshold=self.min_score, target_sizes=[tuple(image.shape[1:])]
        )
        order = found["scores"].argsort(descending=True)[:MAX_BOXES]
        boxes: Tensor = found["boxes"][order].cpu()
        return boxes

    def fingerprint(self) -> dict[str, Any]:
        """Return JSON that changes whenever masks may."""
        return {
            "detector": weights_hash(self.detector),
            "cutter": weights_hash(self.cutter),
            "min_score": self.min_score,
        }


def _nothing(image: Tensor) -> Found:
    """Return that nothing is in an image [3, H, W]."""
    return Found(torch.zeros(0, 4), torch.zeros(0, *image.shape[1:], dtype=torch.bool))


def words_of(meta: Mapping[str, Any]) -> str:
    """Return what a row's subjects are called: the class, or the name of the subject without digits.

    Several subjects are several classes, a list in `meta.class`; each is looked for by itself.

    Raises:
        UserError: The row says neither.
    """
    subject = meta.get("subject")
    # a row that names no subject is a subject of its own, called by its id, which is no word for anything
    named = "" if subject is None or subject == meta.get("id") else str(subject)
    given = meta.get("class") or re.sub(r"[\d_-]+", " ", named)
    names = given if isinstance(given, list) else [given]
    phrases = [" ".join(str(name).lower().replace(".", " ").split()) for name in names]
    # a full stop ends a phrase, as in the detector's training
    words = " ".join(f"{phrase}." for phrase in phrases if phrase)
    if not words:
        raise UserError(
            f"row {meta.get('id')!r} does not say what its subject is, so it cannot be found in images",
            hint='Give the row a "subject", or "class" in its meta: the words of what is to be found.',
        )
    return words


def _load(path: str, model_class: Any, processor_class: Any) -> tuple[Any, Any]:
    model, folder = load_model(path, None, model_class)
    with quiet(["transformers"]), explained(f"segmenter {path!r}: its processor could not be loaded"):
        return model, processor_class.from_pretrained(folder)
