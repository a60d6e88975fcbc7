"""`cgrpo report`: the page of a run."""

from __future__ import annotations

from customized_grpo.cli.common import Run, check_run


def report(run: Run) -> None:
    """Write report.html, finished run or not."""
    check_run(run)

    from customized_grpo.pages.run_page import write_report

    print(write_report(run))
