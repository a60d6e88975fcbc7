"""`cgrpo export`: what a run has trained as files for other programs, or on the hub."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.cli.common import Run, Trust, check_run, parse_checkpoint, print_note
from customized_grpo.errors import UserError


class Format(StrEnum):
    """File formats; kohya's is read by sd-scripts, Forge and others."""

    diffusers = "diffusers"
    comfyui = "comfyui"
    kohya = "kohya"


class Into(StrEnum):
    """What everything that a run put on its base can become."""

    adapter = "adapter"
    transformer = "transformer"


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
        str | None,
        typer.Option(metavar="N|best", help="Iteration of the checkpoint, or best; by default the newest."),
    ] = None,
    ema: Annotated[
        bool | None,
        typer.Option(
            "--ema/--no-ema",
            help="The moving average or not; by default as the run evaluates.",
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            "--precision",
            "--dtype",
            help="Type of the numbers; by default fp32, a transformer's as it was held.",
        ),
    ] = None,
    merge: Annotated[
        Into | None,
        typer.Option(
            help="Make one adapter of it and the LoRAs merged into its base, or a whole transformer."
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Cut the one adapter to this rank; by default it is exact."),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Also upload it to this repository of the hub.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see a new repository; by default it is private.")
    ] = False,
    trust: Trust = None,
) -> None:
    """Write a run's adapter as a file, with a model card.

    For example: cgrpo export runs/toybox --format comfyui
    """
    check_run(run)
    if rank is not None and merge is not Into.adapter:
        raise UserError("--rank: only a merged adapter is cut", hint="Add --merge adapter.")
    if merge is Into.transformer and format is not Format.diffusers:
        raise UserError(
            f"--merge transformer --format {format}: a transformer is written for diffusers",
            hint="Leave --format out, or use --merge adapter.",
        )
    if public and push is None:
        raise UserError("--public: nothing is uploaded", hint="Add --push OWNER/NAME.")

    from customized_grpo.export.push import check_login
    from customized_grpo.export.push import push as upload
    from customized_grpo.export.run import Merge, export_run

    if push is not None:
        # before the export, which takes minutes: without a token nothing can be uploaded
        check_login(push)
    path = export_run(
        run,
        format.value,
        out=out,
        step=parse_checkpoint(checkpoint),
        average=ema,
        precision=None if precision is None else precision.value,
        merge=None if merge is None else Merge(merge.value, rank),
        on_note=print_note,
    )
    print(path)
    if push is not None:
        # the whole folder: the model card goes with the weights
        print(upload(path.parent, push, public=public, message=f"{run.resolve().name}, by cgrpo export"))
