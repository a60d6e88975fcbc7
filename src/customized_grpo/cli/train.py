"""`cgrpo train`: a new run."""

from __future__ import annotations

from typing import Annotated

import typer

from customized_grpo.cli.common import Trust


def train(
    recipe: Annotated[str, typer.Argument(help="Preset, or path of a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings that replace the recipe's."),
    ] = None,
    trust: Trust = None,
) -> None:
    """Train a new run and write its report.

    For example: cgrpo train toybox run.dir=runs/naive advantage.name=linear
    """
    from customized_grpo.config import load_config

    config = load_config(recipe, overrides or ())

    from customized_grpo.training.trainer import train as run

    raise typer.Exit(run(config))
