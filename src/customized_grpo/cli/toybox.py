"""`cgrpo toybox`: the embedded world and the recipe of its weights."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The embedded world, and the recipe that made its weights.", no_args_is_help=True)


class Stage(StrEnum):
    """Autoencoder; rewards and judges; generator on clean pairs; on the noisy mixture; the assets."""

    vae = "vae"
    encoders = "encoders"
    clean = "clean"
    mixture = "mixture"
    pack = "pack"


@app.command()
def pretrain(
    stage: Annotated[Stage, typer.Argument(help="The part to train.")],
    out: Annotated[Path, typer.Option(help="Folder for the weights; later stages read earlier ones there.")],
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Training samples; by default what the shipped weights saw."),
    ] = None,
) -> None:
    """Train a part of ToyBox as the shipped weights were."""
    from customized_grpo.pretraining import stages as pretraining

    pretraining.main(stage.value, out, samples=samples)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="New or empty folder to write to.")],
    subjects: Annotated[int, typer.Option(min=1, help="Number of subjects.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world.")] = 0,
) -> None:
    """Write ToyBox as an ordinary data set.

    The folder gets images, masks, targets, prompts and a manifest that `data.kind=manifest` reads.
    """
    from customized_grpo.toybox.export import export_manifest

    print(export_manifest(folder, subjects, seed))
