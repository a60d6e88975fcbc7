"""The `cgrpo` command: its verbs, and what becomes of errors.

Exit status: 0 done, 2 a mistake the user can fix, 130 after Ctrl-C and 143 after SIGTERM (both saved), 1
with a traceback for anything that is our fault.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from customized_grpo import __version__
from customized_grpo.cli import (
    benchmark,
    compare,
    config,
    data,
    doctor,
    evaluate,
    export,
    generate,
    plan,
    report,
    resume,
    serve_rewards,
    toybox,
    train,
)
from customized_grpo.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback is for a bug report: plain text, whole, no local values
    rich_markup_mode=None,  # rich would double the time --help takes, and read markup into user text
)
app.command("plan")(plan.plan)
app.command("doctor")(doctor.doctor)
app.command("compare")(compare.compare)
app.command("train")(train.train)
app.command("resume")(resume.resume)
app.command("evaluate", cls=evaluate.EvaluateCommand)(evaluate.evaluate)
app.command("generate")(generate.generate)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("serve-rewards")(serve_rewards.serve_rewards)
app.add_typer(benchmark.app, name="benchmark")
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.add_typer(toybox.app, name="toybox")

_PASSWORD = re.compile(r"(?<=://)[^/\s@]+@")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cgrpo {__version__}")
        raise typer.Exit


@app.callback()
def _cgrpo(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version."),
    ] = False,
) -> None:
    """Customized-GRPO: reinforcement learning for subject-driven image generators.

    Start with: cgrpo train toybox
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit status, or leave by SystemExit where typer does.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    try:
        app(args=argv, prog_name="cgrpo")
    except UserError as error:
        hint = "" if error.hint is None else f"\n{error.hint}"
        print(_visible(f"error: {error.message}{hint}"), file=sys.stderr)
        return 2
    return 0


def _visible(text: str) -> str:
    """Escape control characters, which must not drive the terminal, and hide passwords in addresses."""
    text = _PASSWORD.sub("[hidden]@", text)
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
