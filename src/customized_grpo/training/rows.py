"""The rows of a recipe's manifests: checked at the start, with progress, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from customized_grpo.data.checked_manifest import CheckedManifest, open_manifest
from customized_grpo.data.examples import ExampleSource, ManifestSource
from customized_grpo.data.fitting import Fitting, crop_box
from customized_grpo.data.image_info import ImageInfo
from customized_grpo.data.listing import a_few
from customized_grpo.data.mixture import MixedPart, Mixture
from customized_grpo.data.overlap import Overlap, find_overlap, joined
from customized_grpo.errors import UserError
from customized_grpo.policies.families import get_family
from customized_grpo.policies.reference_rule import reference_size_of
from customized_grpo.rewards import needs_masks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from customized_grpo.config import Config
    from customized_grpo.config.data_sources import ManifestData
    from customized_grpo.config.schema import ModelConfig
    from customized_grpo.data.stored_rows import StoredRows


@dataclass(frozen=True)
class ManifestRows:
    """The rows of a recipe.

    Attributes:
        train: Rows to train on, of data.train.
        mix: Further rows to train on, of each manifest of data.mix.
        held_out: Rows to evaluate on; None when there are none.
        n_held_out_subjects: Their subjects.
        overlap: What the two have in common.
        fingerprints: Of rows and images, by part of the data.
        notes: What the user should know of them, a sentence each.
        n_bare: Rows without references, to train on and to evaluate on.
    """

    train: StoredRows
    held_out: StoredRows | None = None
    n_held_out_subjects: int = 0
    overlap: Overlap = Overlap()
    fingerprints: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    n_bare: int = 0
    mix: Sequence[StoredRows] = ()


def open_rows(config: Config, data: ManifestData, *, show: bool = False) -> ManifestRows:
    """Check the rows of a recipe and every file that they name.

    Args:
        config: The recipe.
        data: Its section `data`.
        show: Whether to show progress on stderr.

    Raises:
        UserError: Rows are bad, or the cut to the shape of the image leaves nothing of a masked subject.
    """
    # Masks are demanded before a reward meets a row without one in mid-training.
    train_masks = any(needs_masks(reward) for reward in config.rewards)
    trained = {"train": data.train}
    trained |= {f"mix.{number}": part.train for number, part in enumerate(data.mix)}
    manifests = {
        part: open_manifest(path, require_masks=train_masks, show=show) for part, path in trained.items()
    }
    _refuse_shared_ids(manifests)
    overlap = Overlap()
    if config.evaluation_rows is not None:
        # held-out rows are scored by the training rewards and by the judges
        masks = train_masks or any(needs_masks(judge) for judge in config.evaluation.judges)
        manifests["held_out"] = open_manifest(config.evaluation_rows, require_masks=masks, show=show)
        overlap = joined([find_overlap(manifests[part], manifests["held_out"]) for part in trained])
    notes: list[str] = []
    for manifest in manifests.values():
        notes += [*manifest.notes, *_bare_notes(config, manifest)]
    fittings = dict.fromkeys(trained, fitting_of(config, config.model))
    fittings["held_out"] = fitting_of(config, config.evaluation_model)
    # Training and evaluation draw at one size mostly: one check then serves both.
    for fitting in dict.fromkeys(fittings.values()):
        of_fitting = [manifest for part, manifest in manifests.items() if fittings[part] == fitting]
        if fitting.fit == "crop":
            _check_masks_survive(of_fitting, fitting.height, fitting.width)
        note = fitting.note(_sizes(of_fitting))
        notes += [] if note is None else [note]
    held_out = manifests.get("held_out")
    return ManifestRows(
        train=manifests["train"].rows,
        mix=[manifests[part].rows for part in trained if part != "train"],
        held_out=None if held_out is None else held_out.rows,
        n_held_out_subjects=0 if held_out is None else len(held_out.subjects),
        overlap=overlap,
        fingerprints={part: manifest.fingerprint for part, manifest in manifests.items()},
        notes=[*notes, overlap.sentence(can_be_split=data.held_out is not None)] if overlap else notes,
        n_bare=sum(manifest.n_bare for manifest in manifests.values()),
    )


def _bare_notes(config: Config, manifest: CheckedManifest) -> list[str]:
    """Return a sentence about rows without references among others.

    Raises:
        UserError: The model does not draw from a prompt alone.
    """
    if not manifest.n_bare:
        return []
    path, total, family = manifest.rows.path, len(manifest.rows), config.model.family
    found = f"{path}: {manifest.n_bare:,} of {total:,} rows have no references"
    if not get_family(family).policy_class().TEXT_TO_IMAGE:
        raise UserError(
            f"{found}, and {family} does not draw from a prompt alone",
            hint="Name references in every row, or a family of text to image, such as flux2.",
        )
    return [] if manifest.n_bare == total else [f"{found}: they are drawn from the prompt alone"]


def _refuse_shared_ids(manifests: Mapping[str, CheckedManifest]) -> None:
    """Refuse manifests of one training with the same id: its noise would be that of the other row.

    Raises:
        UserError: Names the rows.
    """
    if len(manifests) < 2:
        return
    seen: set[str] = set()
    twice: list[tuple[str, str]] = []
    for manifest in manifests.values():
        ids = {name for name, _ in manifest.rows.texts()}
        twice += [(f"row {name!r}", f"{manifest.rows.path} has it too") for name in sorted(ids & seen)]
        seen |= ids
    if twice:
        lines = "".join(f"\n  {line}" for line in a_few(twice))
        raise UserError(
            f"{len(twice):,} ids are in several manifests of data.train and data.mix:{lines}",
            hint="Rename them in one: the id is part of the seed of a row's samples. To draw a manifest more "
            "often, give it a larger weight.",
        )


def fitting_of(config: Config, model: ModelConfig) -> Fitting:
    """Return the size and shape that references get for images of a recipe's training or evaluation.

    Args:
        config: The recipe.
        model: Its section `model`, or that of its evaluation.
    """
    multiple = get_family(model.family).size_multiple
    return Fitting(model.height, model.width, model.reference_fit, reference_size_of(config), multiple)


def mixed(data: ManifestData, rows: ManifestRows, fitting: Fitting) -> ExampleSource:
    """Return the rows to train on, of one manifest or of several."""
    train = ManifestSource(rows.train, fitting)
    if not data.mix and data.rewards is None:
        return train
    parts = [MixedPart(train, 1.0, data.rewards)]
    for part, stored in zip(data.mix, rows.mix, strict=True):
        parts.append(MixedPart(ManifestSource(stored, fitting), part.weight, part.rewards))
    return Mixture(parts)


def _check_masks_survive(manifests: Sequence[CheckedManifest], height: int, width: int) -> None:
    """Refuse rows of whose masked subject the cut leaves nothing: a reward would stop in mid-training.

    Raises:
        UserError: Names them.
    """
    lost = []
    for manifest in manifests:
        files = manifest.files
        # place among all files of the manifest, as in every column of `files`
        masks = np.flatnonzero(files.is_mask).tolist()
        empty = {files.names[place] for place in masks if not _overlaps(files.info(place), height, width)}
        # rows are read only where one has to be named: it takes a while with many
        if not empty:
            continue
        gone = {manifest.folder / name for name in empty}
        for row in manifest.rows:
            cut_away = [mask for mask in row.masks if mask in gone]
            lost += [(f"row {row.id!r}", f"{mask} marks only what is cut away") for mask in cut_away]
    if lost:
        lines = "".join(f"\n  {line}" for line in a_few(lost))
        raise UserError(
            f"nothing is left of the subject of {len(lost):,} references when they are cut to the shape of "
            f"the drawn image ({height} x {width}, height x width):{lines}",
            hint="Set model.reference_fit=whole, another model.height or model.width, or cut these yourself.",
        )


def _overlaps(mask: ImageInfo, height: int, width: int) -> bool:
    """Return whether at least a pixel of the mask's box is kept by the cut."""
    if mask.box is None:
        return False
    # In pixels of the file, as the mask's box is.
    left, top, right, bottom = crop_box(mask.size, height, width)
    kept_x = min(mask.box[2], right) - max(mask.box[0], left)
    kept_y = min(mask.box[3], bottom) - max(mask.box[1], top)
    return kept_x >= 1 and kept_y >= 1


def _sizes(manifests: Sequence[CheckedManifest]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield name and size of every different reference."""
    seen: set[str] = set()
    for manifest in manifests:
        folder = manifest.folder
        places = np.flatnonzero(manifest.files.is_reference).tolist()
        sizes = manifest.files.sizes.tolist()
        for place in places:
            name = f"{folder}/{manifest.files.names[place]}"
            if name not in seen:  # in both manifests, perhaps
                seen.add(name)
                width, height = sizes[place]
                yield name, (width, height)
