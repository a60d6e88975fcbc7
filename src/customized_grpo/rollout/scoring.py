"""What rewards and judges get to see of images that were made for examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from customized_grpo.rewards.base import ScoringBatch

if TYPE_CHECKING:
    from customized_grpo.data.examples import Example


def scoring_batch(images: Tensor, examples: Sequence[Example]) -> ScoringBatch:
    """Return images [B, 3, H, W] in [0, 1] with the prompts, references and masks of one example each."""
    masks = [list(example.masks) for example in examples if example.masks is not None]
    return ScoringBatch(
        images=images,
        prompts=[example.prompt for example in examples],
        references=[list(example.references) for example in examples],
        # a reward that needs masks needs them for all: some are as good as none
        reference_masks=masks if len(masks) == len(examples) else None,
        # Nobody has masks of images that were drawn just now; a segmenter adds them later.
        image_masks=None,
        meta=[{"id": example.id, "subject": example.subject, **example.meta} for example in examples],
    )
