"""What finds the subjects in drawn images."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from customized_grpo.fields import Section, WeightsPath


class SegmenterConfig(Section):
    """Finds the subject in drawn images by words, for rewards with segment: both (docs/masks.md)."""

    detector: WeightsPath = "IDEA-Research/grounding-dino-tiny"
    """GroundingDINO of transformers, which finds boxes: a folder or a hub id."""
    cutter: WeightsPath = "facebook/sam-vit-base"
    """SAM of transformers, which cuts the boxes out: a folder or a hub id."""
    min_score: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Score of the detector below which a box is no subject."""
