"""`cgrpo resume`: an interrupted run continues."""

from __future__ import annotations

from typing import Annotated

import typer

from customized_grpo.cli.common import Run, Trust, check_run


def resume(
    run: Run,
    step: Annotated[
        int | None,
        typer.Option("--from", min=0, help="Iteration to go back to; later checkpoints are set aside."),
    ] = None,
    trust: Trust = None,
) -> None:
    """Continue an interrupted run exactly.

    It continues from the newest checkpoint or the one of --from as if it had never stopped, or says why it
    cannot; it never starts again from the beginning.

    For example: cgrpo resume runs/toybox
    """
    check_run(run)

    from customized_grpo.training.trainer import resume as continue_run

    raise typer.Exit(continue_run(run, step))
