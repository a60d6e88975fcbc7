"""`cgrpo resume`: an interrupted run, continued exactly."""

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

    It goes on from a checkpoint, the newest if not told otherwise, as if it had never stopped, or refuses;
    it never starts afresh.
    """
    check_run(run)

    from customized_grpo.training.trainer import resume as continue_run

    raise typer.Exit(continue_run(run, step))
