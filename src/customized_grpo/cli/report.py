"""`cgrpo report`: the page of a run, written again."""

from __future__ import annotations

from customized_grpo.cli.common import Run, check_run


def report(run: Run) -> None:
    """Write the page of a run, finished or not.

    For example: cgrpo report runs/toybox
    """
    check_run(run)

    from customized_grpo.pages.run_page import write_report

    print(write_report(run))
