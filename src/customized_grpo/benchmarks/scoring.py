"""Scores of a benchmark's images, read back from their PNG files: a column for each metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from customized_grpo.benchmarks.encoders import Floats, MetricReward, combine
from customized_grpo.benchmarks.images import Drawing, ImageFolder
from customized_grpo.benchmarks.protocol import ReferenceMode, Segment
from customized_grpo.benchmarks.rows import BenchmarkRow
from customized_grpo.data.images import open_image, open_mask, to_tensor
from customized_grpo.errors import UserError
from customized_grpo.rewards.base import ScoringBatch, score_all

PREPROCESSING = f"pillow {PIL.__version__}"
"""Every encoder's resize is Pillow's; see `customized_grpo.rewards.preprocessing`."""


def check_scorable(rows: Sequence[BenchmarkRow], mode: ReferenceMode, segment: Segment) -> None:
    """Refuse combinations that could only fail after hours of drawing.

    Raises:
        UserError: References must be cut out, but have no masks or are not the photos to compare with.
    """
    if segment == "none":
        return
    if mode == "all":
        raise UserError(
            "--segment reference --reference-mode all: only the given references have masks",
            hint="Use --reference-mode single, or --segment none.",
        )
    bare = [row.id for row in rows if not row.masks]
    if bare:
        raise UserError(
            f"--segment reference: {len(bare)} rows have no masks, first {bare[0]!r}",
            hint="Add masks to the manifest, or use --segment none as DreamBench does.",
        )


def score_images(
    folder: ImageFolder,
    drawings: Sequence[Drawing],
    rewards: Sequence[MetricReward],
    *,
    mode: ReferenceMode,
    segment: Segment,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda count: None,
) -> dict[str, Floats]:
    """Score every image with every reward.

    Args:
        folder: Folder of the images, all of them whole.
        drawings: The images to score.
        rewards: The rewards and their metrics.
        mode: Whether an image is compared with the reference it was made from or with all photos.
        segment: Whether references are cut out.
        batch_size: Images scored together.
        on_batch: Called with the number of images after every batch.

    Returns:
        Columns [N] by metric, NaN where an image could not be scored.

    Raises:
        UserError: A photo or image cannot be read, or a reward refuses the batch.
    """
    batches: list[Floats] = []  # [n, K] each: n images, K rewards
    for start in range(0, len(drawings), batch_size):
        part = drawings[start : start + batch_size]
        batch = _batch(folder, part, mode, segment)
        # rewards score in fp32; means and bootstraps over thousands of images are computed in fp64
        batches.append(score_all([reward.reward for reward in rewards], batch).double().numpy())
        on_batch(len(part))
    scores = np.concatenate(batches)
    columns: dict[str, list[Floats]] = {}
    for k, reward in enumerate(rewards):
        columns.setdefault(reward.metric, []).append(scores[:, k] * reward.scale)
    return combine(columns)


def _batch(
    folder: ImageFolder, part: Sequence[Drawing], mode: ReferenceMode, segment: Segment
) -> ScoringBatch:
    photos: dict[Path, Tensor] = {}  # rows of one subject share photos, and each is decoded once

    def load(file: Path) -> Tensor:
        if file not in photos:
            photos[file] = to_tensor(open_image(file))
        return photos[file]

    images: list[Tensor] = []
    references: list[list[Tensor]] = []
    masks: list[list[Tensor]] = []
    for row, number in part:
        images.append(to_tensor(open_image(folder.file((row, number)))))
        references.append([load(file) for file in scored_against(row, mode)])
        # masks are files as well, and are read only where something is cut out
        if segment != "none":
            masks.append([to_tensor(open_mask(file)) for file in row.masks])
    return ScoringBatch(
        images=torch.stack(images),
        prompts=[row.prompt for row, _ in part],
        references=references,
        reference_masks=masks if segment != "none" else None,
        # nobody has segmented what was drawn, see `check_scorable`
        image_masks=None,
        meta=[{"id": row.id} for row, _ in part],
    )


def scored_against(row: BenchmarkRow, mode: ReferenceMode) -> tuple[Path, ...]:
    """Return the photos that an image of the row is compared with."""
    return row.photos if mode == "all" else row.references
