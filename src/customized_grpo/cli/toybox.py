"""`cgrpo toybox`: the embedded world as files, and the pretraining of its weights."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Export ToyBox as files, or pretrain its models.", no_args_is_help=True)


class Stage(StrEnum):
    """Autoencoder; rewards and judges; generator on good pairs; on mixed pairs; package the weights."""

    vae = "vae"
    encoders = "encoders"
    clean = "clean"
    mixture = "mixture"
    pack = "pack"


@app.command()
def pretrain(
    stage: Annotated[Stage, typer.Argument(help="The part to train; they follow each other in this order.")],
    out: Annotated[Path, typer.Option(help="Folder for the weights of all stages.")],
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Training samples; by default as many as for the shipped weights."),
    ] = None,
) -> None:
    """Train a part of ToyBox as the shipped weights were trained."""
    from customized_grpo.pretraining.stages import main as run_stage

    run_stage(stage.value, out, samples=samples)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="New or empty folder to write to.")],
    subjects: Annotated[int, typer.Option(min=1, help="Number of subjects.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world.")] = 0,
) -> None:
    """Write ToyBox as a data set of image files.

    The folder gets images, masks, targets, prompts and a manifest that `data.kind=manifest` reads.
    """
    from customized_grpo.toybox.export import export_manifest

    print(export_manifest(folder, subjects, seed))
