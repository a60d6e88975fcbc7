"""Masks for references that have none, by a segmentation model that the user brings.

The model is an ONNX [1, 3, H, W] -> [1, 1, H, W] such as U2-Net, IS-Net or BiRefNet: the first of its outputs
is the degree to which each pixel belongs to the subject. Each photo gets one mask file beside the new
manifest, of the photo's size, written whole or not at all; a second call makes only the missing ones. A file
that a power cut damaged is set aside as NAME.damaged, and the work goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from customized_grpo.data.images import open_image, open_mask, read_text
from customized_grpo.data.manifest import Row, load_manifest, write_manifest
from customized_grpo.errors import UserError
from customized_grpo.files import file_sha256, read_json, replacing, write_json
from customized_grpo.onnx_model import Array, OnnxModel

FOLDER = "masks"
STAMP = "segmenter.json"
PHOTO_KEY = "cgrpo.photo"
"""Entry of a mask's PNG with the SHA-256 of its photo: another photo may take the same name."""
COMPARED = 8
"""Masks that are made again where the stamp is lost."""

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class SegmenterLayout:
    """The input and output of a segmentation model.

    Attributes:
        size: Height and width of its image where the model leaves them open, in pixels.
        mean: Mean of each channel, on the scale of [0, 1].
        std: Standard deviation of each channel, on the scale of [0, 1].
        sigmoid: Whether the output still needs a sigmoid to be in [0, 1].
        threshold: Value from which a pixel is subject.
    """

    size: int
    mean: Colour
    std: Colour
    sigmoid: bool
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise UserError(f"threshold must be between 0 and 1, not {self.threshold:g}")
        if min(self.std) <= 0:
            raise UserError(f"std must be above 0, not {', '.join(f'{value:g}' for value in self.std)}")


_IMAGENET: tuple[Colour, Colour] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LAYOUTS: dict[str, SegmenterLayout] = {
    "u2net": SegmenterLayout(320, *_IMAGENET, sigmoid=False),
    "isnet": SegmenterLayout(1024, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), sigmoid=False),
    "birefnet": SegmenterLayout(1024, *_IMAGENET, sigmoid=True),
}
"""Known models, as their authors run them."""


class Segmenter:
    """A segmentation model: from a photo to the mask of its subject.

    Args:
        path: The ONNX file.
        layout: Its input and output.

    Raises:
        UserError: It is no such model.
    """

    def __init__(self, path: Path, layout: SegmenterLayout) -> None:
        self.model = OnnxModel(path, "segmenter", size=layout.size)
        self.layout = layout
        # one run on a blank image: a wrong model is refused before the first photo
        self._first(self.model.blank())

    def __call__(self, photo: Image.Image) -> Image.Image:
        """Return the mask ("L", 0 and 255) of an RGB photo, in its size.

        Raises:
            UserError: The model's values are not in [0, 1], as a mask's must be.
        """
        size = self.model.width, self.model.height
        resized = np.asarray(photo.resize(size, Image.Resampling.BILINEAR))
        pixels = resized.astype(np.float32) / np.float32(255)
        mean = np.array(self.layout.mean, np.float32)
        std = np.array(self.layout.std, np.float32)
        normalised: Array = (pixels - mean) / std
        # [H, W, 3] -> [3, H, W], as the models take it
        values = self._first(self.model(normalised.transpose(2, 0, 1)))
        if self.layout.sigmoid:
            values = 0.5 * (1 + np.tanh(0.5 * values))  # the sigmoid, without overflow
        if not (values.min() >= -1e-3 and values.max() <= 1 + 1e-3):  # `not`, because NaN is wrong as well
            raise UserError(
                f"{self.model.path}: the values of a mask are in [0, 1], these are in "
                f"[{values.min():.3g}, {values.max():.3g}]",
                hint="Choose the layout the model was made for, or --sigmoid.",
            )
        # the degrees are resized and cut at the threshold afterwards, so that the outline stays smooth
        whole = Image.fromarray(values).resize(photo.size, Image.Resampling.BILINEAR)
        return Image.fromarray(np.where(np.asarray(whole) >= self.layout.threshold, 255, 0).astype(np.uint8))

    def stamp(self) -> dict[str, Any]:
        """Return everything that the masks depend on: the model's hash and its layout."""
        # tuples become lists, as in the file that this is compared with
        layout = json.loads(json.dumps(asdict(self.layout)))
        return {"sha256": self.model.sha256, **layout, "size": [self.model.height, self.model.width]}

    def _first(self, outputs: dict[str, Array]) -> Array:
        """Return the first output as [H, W]; the others of U2-Net are coarser versions of it."""
        first = next(iter(outputs.values()))
        expected = (1, 1, self.model.height, self.model.width)
        if first.shape != expected:
            raise UserError(
                f"{self.model.path}: the first output of a segmenter is {list(expected)}, "
                f"not {list(first.shape)}"
            )
        values: Array = first[0, 0]
        return values


def make_masks(
    manifest: Path, segmenter: Segmenter, out: Path, *, on_progress: Callable[[str], None] = lambda _: None
) -> Path:
    """Give every reference of a manifest a mask; rows that have masks keep them.

    Args:
        manifest: The rows.
        segmenter: The model.
        out: The manifest to write, in the folder of `manifest`; masks go into `masks/` beside it.
        on_progress: Gets a line after each photo.

    Returns:
        `out`, which is written only when every reference has a mask.

    Raises:
        UserError: Rows are bad, `out` exists or is in another folder, `masks/` is another segmenter's, or
            some photos show no subject: lists all of them.
    """
    if out.exists():
        raise UserError(f"{out} already exists", hint="Name a new manifest with --out.")
    if out.parent.resolve() != manifest.parent.resolve():
        raise UserError(
            f"{out} is not in the folder of {manifest}", hint="Its paths are relative to that folder."
        )
    rows = load_manifest(manifest, require_masks=False)
    folder = out.parent / FOLDER
    # by photo, because rows share references
    masks: dict[Path, Path] = {}
    for row in rows:
        # Rows with masks keep theirs, drawn by somebody who knew better.
        for photo in () if row.masks else row.references:
            masks[photo] = folder / f"{_name(photo, out.parent)}.png"
    _claim(folder, segmenter, masks, on_progress)
    empty = []
    for number, (photo, mask) in enumerate(masks.items(), start=1):
        has_mask = _is_whole(mask, photo, on_progress) or _make(photo, mask, segmenter)
        if not has_mask:
            empty.append(photo)
        on_progress(
            f"{number} of {len(masks)}: {photo}{'' if has_mask else ' shows nothing that stands out'}"
        )
    # At the end: one call names every photo that needs a mask by hand.
    if empty:
        raise UserError(
            _empty_message(empty, rows),
            hint="Draw these by hand, white on black, as "
            f"{FOLDER}/PHOTO.png (dog/1.jpg: {FOLDER}/dog/1.jpg.png) and call this again, "
            "or leave the rows out.",
        )
    write_manifest(out, [row if row.masks else _masked(row, masks) for row in rows])
    return out


def _masked(row: Row, masks: Mapping[Path, Path]) -> Row:
    return replace(row, masks=tuple(masks[photo] for photo in row.references))


def _name(photo: Path, folder: Path) -> str:
    """Return the photo's path below the manifest with its own ending: a.jpg and a.png are two photos."""
    return photo.relative_to(folder.resolve()).as_posix()


def _claim(
    folder: Path, segmenter: Segmenter, masks: Mapping[Path, Path], on_progress: Callable[[str], None]
) -> None:
    """Record which segmenter fills the folder, or check that it is this one.

    Raises:
        UserError: It is another one, or it has other settings.
    """
    file = folder / STAMP
    folder.mkdir(exist_ok=True)
    if file.exists():
        try:
            is_own = read_json(file) == segmenter.stamp()
        except UserError as error:
            on_progress(f"{error.message}; it is set aside, and some masks are made again to compare")
            _set_aside(file)
            is_own = _made_some(segmenter, masks)
        if not is_own:
            raise UserError(
                f"{folder} holds masks of another segmenter, or of other settings ({file})",
                hint="Delete or rename the folder; then all masks are made again.",
            )
    # before the first mask, so that no mask is ever there without it
    write_json(file, segmenter.stamp())


def _made_some(segmenter: Segmenter, masks: Mapping[Path, Path]) -> bool:
    """Return whether the segmenter made one of the first masks in the folder, or there are none.

    One is enough, because the others may have been drawn by hand.
    """
    n_compared = 0
    for photo, mask in masks.items():
        try:
            stored = open_mask(mask)
        except UserError:
            continue
        if np.array_equal(np.asarray(stored), np.asarray(segmenter(open_image(photo)))):
            return True
        n_compared += 1
        if n_compared == COMPARED:
            break
    return n_compared == 0


def _set_aside(file: Path) -> None:
    os.replace(file, file.with_name(f"{file.name}.damaged"))


def _is_whole(mask: Path, photo: Path, on_progress: Callable[[str], None]) -> bool:
    """Return whether there is a mask for the photo already, from an earlier call or drawn by hand.

    Raises:
        UserError: There is an image that is no mask of this photo.
    """
    if not mask.exists():
        return False
    try:
        open_image(mask)
    except UserError as error:
        on_progress(f"{error.message}; it is set aside, and made again")
        _set_aside(mask)
        return False
    made_of = read_text(mask, PHOTO_KEY)
    if made_of is not None and made_of != file_sha256(photo):
        on_progress(f"{photo} was changed after its mask was made, which is made again")
        return False
    if open_mask(mask).size != open_image(photo).size:
        raise UserError(f"{mask} has not the size of {photo}", hint="Delete it; then it is made again.")
    return True


def _make(photo: Path, mask: Path, segmenter: Segmenter) -> bool:
    """Write the mask of a photo; return False, and write nothing, if it is empty."""
    image = segmenter(open_image(photo))
    if image.getextrema()[1] == 0:
        return False
    mask.parent.mkdir(parents=True, exist_ok=True)
    with replacing(mask) as draft:
        info = PngInfo()
        info.add_text(PHOTO_KEY, file_sha256(photo))
        # the format is named, because a draft's name does not end in .png
        image.save(draft, format="PNG", pnginfo=info)
    return True


def _empty_message(empty: Sequence[Path], rows: Sequence[Row]) -> str:
    lines = []
    for photo in empty:
        users = [row.id for row in rows if photo in row.references]
        more = f" and {len(users) - 1} more" if len(users) > 1 else ""
        lines.append(f"  {photo} (row {users[0]!r}{more})")
    return "\n".join([f"nothing stands out in {len(empty)} photos, so they have no mask:", *lines])
