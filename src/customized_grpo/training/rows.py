"""The rows of a recipe's manifests: checked at the start, with progress, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from customized_grpo.data.fitting import crop_box, cut_note
from customized_grpo.data.image_info import ImageInfo, ImageInspector
from customized_grpo.data.listing import a_few
from customized_grpo.data.manifest import load_manifest, scan_manifest
from customized_grpo.errors import UserError
from customized_grpo.reporting.counting import counting
from customized_grpo.rewards import needs_masks

if TYPE_CHECKING:
    from pathlib import Path

    from customized_grpo.config import Config
    from customized_grpo.config.schema import ManifestData
    from customized_grpo.data.manifest import Row

SHOWN = 500
"""Files from which their check shows progress; fewer take seconds."""


@dataclass(frozen=True)
class ManifestRows:
    """The rows of a recipe.

    Attributes:
        train: Rows to train on.
        held_out: Rows to evaluate on; empty when there are none.
        notes: What the user should know of them, a sentence each.
    """

    train: list[Row]
    held_out: list[Row]
    notes: list[str] = field(default_factory=list)


def open_rows(config: Config, data: ManifestData, *, show: bool = False) -> ManifestRows:
    """Check the rows of a recipe and every file that they name.

    Args:
        config: The recipe.
        data: Its section `data`.
        show: Whether to show progress on stderr.

    Raises:
        UserError: Rows are bad, or the cut to the shape of the image leaves nothing of a masked subject.
    """
    train_masks = any(needs_masks(reward) for reward in config.rewards)
    # held-out rows are scored by the training rewards and by the judges
    masks = train_masks or any(needs_masks(judge) for judge in config.evaluation.judges)
    manifests = {data.train: train_masks}
    if data.held_out is not None:
        manifests[data.held_out] = masks
    inspector = ImageInspector()
    _open_files(inspector, list(manifests), show=show)
    train = load_manifest(data.train, require_masks=train_masks, inspector=inspector)
    held_out: list[Row] = []
    if data.held_out is not None:
        held_out = load_manifest(data.held_out, require_masks=masks, inspector=inspector)
    rows = [*train, *held_out]
    height, width = config.model.height, config.model.width
    if config.model.reference_fit == "pad":
        return ManifestRows(train, held_out)
    _check_masks_survive(inspector, rows, height, width)
    note = cut_note(_sizes(inspector, rows), height, width)
    return ManifestRows(train, held_out, [] if note is None else [note])


def _open_files(inspector: ImageInspector, manifests: Sequence[Path], *, show: bool) -> None:
    """Open the files of the rows whose lines are right; the other rows are refused later anyway."""
    images: dict[Path, None] = {}  # an ordered set
    masks: dict[Path, None] = {}
    for manifest in manifests:
        for _, row in scan_manifest(manifest, None, require_masks=False).rows:
            images |= dict.fromkeys(row.references)
            masks |= dict.fromkeys(row.masks)
            if row.target is not None:
                images[row.target] = None
    with _progress(len(images) + len(masks), show=show) as on_file:
        inspector.open_all(list(images), list(masks), on_file)


@contextmanager
def _progress(total: int, *, show: bool) -> Iterator[Callable[[], None]]:
    if not show or total < SHOWN:
        yield lambda: None
        return
    with closing(counting("checking images", total)) as counter:
        yield lambda: counter.add(1)


def _check_masks_survive(inspector: ImageInspector, rows: Sequence[Row], height: int, width: int) -> None:
    """Refuse rows of whose masked subject the cut leaves nothing: a reward would stop in mid-training.

    Raises:
        UserError: Names them.
    """
    lost = []
    for row in rows:
        for mask in row.masks:
            info = inspector.mask(mask)
            if isinstance(info, ImageInfo) and not _overlaps(info, height, width):
                lost.append((f"row {row.id!r}", f"{mask} marks only what is cut away"))
    if lost:
        lines = "".join(f"\n  {line}" for line in a_few(lost))
        raise UserError(
            f"nothing is left of the subject of {len(lost):,} references when they are cut to the shape of "
            f"the drawn image ({height} x {width}, height x width):{lines}",
            hint="Set model.reference_fit=pad, another model.height and model.width, or cut these yourself.",
        )


def _overlaps(mask: ImageInfo, height: int, width: int) -> bool:
    """Return whether at least a pixel of the mask's box is kept by the cut."""
    if mask.box is None:
        return False
    left, top, right, bottom = crop_box(mask.size, height, width)
    kept_x = min(mask.box[2], right) - max(mask.box[0], left)
    kept_y = min(mask.box[3], bottom) - max(mask.box[1], top)
    return kept_x >= 1 and kept_y >= 1


def _sizes(inspector: ImageInspector, rows: Sequence[Row]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield name and size of every different reference."""
    files: dict[Path, None] = {}
    for row in rows:
        files |= dict.fromkeys(row.references)
    for file in files:
        info = inspector.image(file)
        if isinstance(info, ImageInfo):
            yield str(file), info.size
