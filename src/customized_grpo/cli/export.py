"""`cgrpo export`: the adapter of a run as a file for other programs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.cli.common import Run, Trust, check_run


class Format(StrEnum):
    """File formats; kohya's is read by sd-scripts, Forge and others."""

    diffusers = "diffusers"
    comfyui = "comfyui"
    kohya = "kohya"


class Precision(StrEnum):
    """Types of the numbers in the file."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def export(
    run: Run,
    format: Annotated[Format, typer.Option(help="Which program the file is for.")] = Format.diffusers,
    out: Annotated[
        Path | None, typer.Option(help="New or empty folder; by default export/FORMAT in the run.")
    ] = None,
    checkpoint: Annotated[
        int | None, typer.Option(min=0, help="Iteration of the checkpoint; by default the newest.")
    ] = None,
    ema: Annotated[
        bool | None,
        typer.Option(
            "--ema/--no-ema",
            help="The moving average or not; by default as the run evaluates.",
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(
            "--precision", "--dtype", help="Type of the numbers: bf16 and fp16 take half the space."
        ),
    ] = Precision.fp32,
    trust: Trust = None,
) -> None:
    """Write a run's adapter as a file, with a model card.

    For example: cgrpo export runs/toybox --format comfyui
    """
    check_run(run)

    from customized_grpo.export import export_run

    print(export_run(run, format.value, out=out, step=checkpoint, average=ema, precision=precision.value))
