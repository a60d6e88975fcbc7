"""Scores of a benchmark's pictures: a table with a row for each, read back from the PNGs that are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from customized_grpo.benchmarks.encoders import Encoder, Floats, combine
from customized_grpo.benchmarks.pictures import Drawing, PictureFolder
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
        UserError: References shall be cut out, but have no masks, or other photos than those are scored.
    """
    if segment == "none":
        return
    if mode == "all":
        raise UserError(
            "--segment reference --reference-mode all: only the given references have masks",
            "Use --reference-mode single, or --segment none.",
        )
    if bare := [row.id for row in rows if not row.masks]:
        raise UserError(
            f"--segment reference: {len(bare)} rows have no masks, first {bare[0]!r}",
            "Add masks to the manifest, or use --segment none as DreamBench does.",
        )


def score_pictures(
    folder: PictureFolder,
    drawings: Sequence[Drawing],
    encoders: Sequence[Encoder],
    *,
    mode: ReferenceMode,
    segment: Segment,
    batch_size: int,
    scored: Callable[[int], None] = lambda count: None,
) -> dict[str, Floats]:
    """Score every picture with every encoder.

    Args:
        folder: Holds the pictures, all of them whole.
        drawings: Which pictures.
        encoders: What scores.
        mode: Whether a picture is compared with the reference it was made from or with all photos.
        segment: Whether references are cut out.
        batch_size: Pictures scored together.
        scored: Called with the number of pictures after every batch.

    Returns:
        Columns [N] by metric, NaN where a picture could not be scored.

    Raises:
        UserError: A photo or picture cannot be read, or an encoder refuses the batch.
    """
    parts: dict[str, list[list[Floats]]] = {}
    rewards = [encoder.reward for encoder in encoders]
    for start in range(0, len(drawings), batch_size):
        part = drawings[start : start + batch_size]
        scores = score_all(rewards, _batch(folder, part, mode, segment)).double().numpy()
        columns: dict[str, list[Floats]] = {}
        for k, encoder in enumerate(encoders):
            columns.setdefault(encoder.metric, []).append(scores[:, k] * encoder.scale)
        for metric, found in columns.items():
            parts.setdefault(metric, []).append(found)
        scored(len(part))
    joined = {
        metric: [np.concatenate(runs) for runs in zip(*found, strict=True)] for metric, found in parts.items()
    }
    return combine(joined)


def _batch(
    folder: PictureFolder, part: Sequence[Drawing], mode: ReferenceMode, segment: Segment
) -> ScoringBatch:
    rows = [row for row, _ in part]
    loaded: dict[Path, Tensor] = {}

    def load(file: Path) -> Tensor:
        if file not in loaded:
            loaded[file] = to_tensor(open_image(file))
        return loaded[file]

    return ScoringBatch(
        images=torch.stack([to_tensor(open_image(folder.file(drawing))) for drawing in part]),
        prompts=[row.prompt for row in rows],
        references=[[load(file) for file in scored_against(row, mode)] for row in rows],
        reference_masks=None
        if segment == "none"
        else [[to_tensor(open_mask(file)) for file in row.masks] for row in rows],
        image_masks=None,
        meta=[{"id": row.id} for row in rows],
    )


def scored_against(row: BenchmarkRow, mode: ReferenceMode) -> tuple[Path, ...]:
    """Return the true pictures a picture of the row is compared with."""
    return row.photos if mode == "all" else row.references
