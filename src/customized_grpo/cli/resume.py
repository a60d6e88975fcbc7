"""`cgrpo resume`: an interrupted run, continued exactly."""

from __future__ import annotations

import typer

from customized_grpo.cli.common import Run, check_run


def resume(run: Run) -> None:
    """Continue an interrupted run exactly.

    It goes on from the newest checkpoint as if it had never stopped, or refuses; it never starts afresh.
    """
    check_run(run)

    from customized_grpo.trainer import resume as continue_run

    raise typer.Exit(continue_run(run))
