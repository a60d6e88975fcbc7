"""`cgrpo data masks`: masks for references without them."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from customized_grpo.errors import UserError


class LayoutName(StrEnum):
    """Segmentation models whose preprocessing is built in."""

    u2net = "u2net"
    isnet = "isnet"
    birefnet = "birefnet"


def masks(
    manifest: Annotated[Path, typer.Argument(help="Manifest whose references need masks.")],
    segmenter: Annotated[Path, typer.Option(help="ONNX file: [1, 3, H, W] to [1, 1, H, W].")],
    out: Annotated[
        Path | None,
        typer.Option(help="Manifest to write, in the same folder; by default NAME.masked.jsonl."),
    ] = None,
    layout: Annotated[LayoutName, typer.Option(help="Preprocessing of the model.")] = LayoutName.u2net,
    size: Annotated[
        int | None, typer.Option(min=1, help="Height and width in pixels, for a model that leaves them open.")
    ] = None,
    mean: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Mean of red, green, blue in [0, 1].")
    ] = None,
    std: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Standard deviation of red, green, blue.")
    ] = None,
    sigmoid: Annotated[bool | None, typer.Option(help="Whether the output still needs a sigmoid.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Pixels of at least this value are subject; .5 by default.")
    ] = None,
) -> None:
    """Segment references that have no mask.

    Masks are written to masks/ beside the manifest; masks that are there already are kept.

    For example: cgrpo data masks photos/manifest.jsonl --segmenter isnet.onnx --layout isnet
    """
    if not manifest.is_file():
        raise UserError(
            f"{manifest}: no such manifest",
            hint="Give the .jsonl file of your rows; `cgrpo data convert` makes one from a folder of photos.",
        )

    from customized_grpo.data.masks import LAYOUTS, Segmenter, make_masks

    options: dict[str, Any] = {
        "size": size,
        "mean": mean,
        "std": std,
        "sigmoid": sigmoid,
        "threshold": threshold,
    }
    # by None and not by truth: --no-sigmoid is a choice as well
    changes = {name: value for name, value in options.items() if value is not None}
    model = Segmenter(segmenter, replace(LAYOUTS[layout.value], **changes))
    target = manifest.with_name(f"{manifest.stem}.masked.jsonl") if out is None else out
    # flushed: in a log file the lines would else come in blocks, long after their photos
    print(make_masks(manifest, model, target, on_progress=lambda line: print(line, flush=True)))
