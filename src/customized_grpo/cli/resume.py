"""`cgrpo resume`: an interrupted run continues."""

from __future__ import annotations

from typing import Annotated

import typer

from customized_grpo.cli.common import Overrides, Run, Trust, check_run
from customized_grpo.errors import UserError
from customized_grpo.libraries import undisturbed_imports

FIXED = ("run.dir", "run.overwrite")
"""Settings that say where a run begins, and mean nothing for one that goes on."""


def resume(
    run: Run,
    overrides: Overrides = None,
    step: Annotated[
        int | None,
        typer.Option("--from", min=0, help="Iteration to go back to; later checkpoints are set aside."),
    ] = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-change",
            metavar="KEY",
            help="Go on although this differs from the checkpoint: a setting, or a section; repeatable.",
        ),
    ] = None,
    trust: Trust = None,
) -> None:
    """Continue a run exactly, or for longer.

    It continues from the newest checkpoint or the one of --from as if it had never stopped, or says why it
    cannot; it never starts again from the beginning. Recipe, base, rewards, rows, images and code of your own
    must be those of the checkpoint; what differs is listed, and --allow-change goes on all the same.

    For example: cgrpo resume runs/toybox

    Longer: cgrpo resume runs/toybox train.iterations=400
    """
    check_run(run)
    fixed = [override for override in overrides or () if override.partition("=")[0] in FIXED]
    if fixed:
        raise UserError(
            f"{fixed[0]}: a resumed run stays in its folder", hint="Leave it out, or move the folder first."
        )

    with undisturbed_imports():
        from customized_grpo.training.trainer import resume as continue_run

    # by Exit, because click ignores what a verb returns
    raise typer.Exit(continue_run(run, step, overrides=overrides or (), allowed=allow_change or ()))
