"""`cgrpo train`: a new run."""

from __future__ import annotations

import typer

from customized_grpo.cli.common import Overrides, Recipe, Trust
from customized_grpo.libraries import undisturbed_imports


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    trust: Trust = None,
) -> None:
    """Train a new run and write its report.

    For example: cgrpo train toybox run.dir=runs/naive advantage.name=linear
    """
    from customized_grpo.config import load_config

    # before the import of torch, so that a wrong recipe is said at once
    config = load_config(recipe, overrides or ())

    with undisturbed_imports():
        from customized_grpo.training.trainer import train as run

    # by Exit, because click ignores what a verb returns
    raise typer.Exit(run(config))
