"""The `cgrpo` command: its verbs, and how errors are reported.

Exit status: 0 done, 2 a mistake the user can fix, 128 plus the number of the signal that stopped a run, which
is then saved (130 Ctrl-C, 143 SIGTERM, 129 a closed terminal), 1 with a traceback for a bug.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer
import typer.main

from customized_grpo import __version__
from customized_grpo.cli import (
    benchmark,
    compare,
    config,
    data,
    doctor,
    env,
    evaluate,
    export,
    generate,
    init,
    plan,
    report,
    resume,
    serve_rewards,
    studio,
    toybox,
    train,
)
from customized_grpo.cli.output import LenientStream, lenient_output, word_while_loading
from customized_grpo.disk import DISK_ERRORS, disk_error
from customized_grpo.engine.environment import prepare_cuda
from customized_grpo.errors import UserError, is_out_of_memory
from customized_grpo.libraries import quiet_imports

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},  # verbs inherit it
    pretty_exceptions_enable=False,  # a traceback is for a bug report: plain text, whole, no local values
    rich_markup_mode=None,  # rich would double the time --help takes, and read markup into user text
)
# Help lists them in this order: from a first recipe to what a run leaves.
app.command("init")(init.init)
app.command("plan")(plan.plan)
app.command("doctor")(doctor.doctor)
app.command("compare")(compare.compare)
app.command("train")(train.train)
app.command("resume")(resume.resume)
app.command("evaluate")(evaluate.evaluate)
app.command("generate")(generate.generate)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("serve-rewards")(serve_rewards.serve_rewards)
app.command("studio")(studio.studio)
app.command("env")(env.env)
app.add_typer(benchmark.app, name="benchmark")
app.add_typer(config.app, name="config")
app.add_typer(data.app, name="data")
app.add_typer(toybox.app, name="toybox")

LEAVES_FILES = (["train"], ["resume"], ["compare"])
"""Verbs whose result is a folder: their exit status does not depend on what could be printed."""

LESS_MEMORY = (
    "Take fewer or smaller images at a time (batch sizes, --size), hold less of the model "
    "(model.quantisation=nf4, model.text_encoders=offload, model.offload_vae=true), or end other programs."
)
_HOME = re.compile(r"(--[a-z-]+=)?(~[^/\s]*(?:/.*)?)", re.DOTALL)
_PASSWORD = re.compile(r"(?<=://)[^/\s@]+@")  # in an address, also an address of the hub or of a judge


def _print_version(requested: bool) -> None:
    if requested:
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


@functools.cache
def command_tree() -> Any:
    """Return the commands as typer makes them of `app`, from the signature of every verb: once a process.

    Calling `app` makes them at every call, which costs a program that calls `main` often more than its verbs.
    """
    return typer.main.get_command(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status; typer ends most verbs by SystemExit instead.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    arguments = [_expand_home(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    prepare_cuda(version("torch"))  # before a verb imports it
    with lenient_output() as output, quiet_imports(), word_while_loading():
        try:
            command_tree()(args=arguments, prog_name="cgrpo")
        except UserError as error:
            return _report(error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # the further sentences of torch are about its allocator
            reason = str(error).partition(". ")[0] or "Python has no more memory"
            return _report(UserError(f"out of memory: {reason}", hint=LESS_MEMORY))
        except OSError as error:
            # any other one is a bug, and needs its traceback
            if error.errno not in DISK_ERRORS:
                raise
            return _report(disk_error(error))
        except SystemExit as leave:
            if not leave.code and arguments[:1] not in LEAVES_FILES and (lost := _lost(output)):
                return _report(lost)
            raise
    return 0


def _expand_home(argument: str) -> str:
    """Return an argument with the home folder for `~`, which a shell leaves alone in `--out=~/images`."""
    match = _HOME.fullmatch(argument)
    return argument if match is None else f"{match[1] or ''}{os.path.expanduser(match[2])}"


def _report(error: UserError) -> int:
    hint = "" if error.hint is None else f"\n{error.hint}"
    print(_PASSWORD.sub("[hidden]@", f"error: {error.message}{hint}"), file=sys.stderr)
    return 2


def _lost(output: LenientStream) -> UserError | None:
    """Return an error if not all of the standard output could be written, for verbs whose result it is."""
    output.flush()
    if not output.was_full:
        return None
    assert output.loss is not None
    return UserError(
        f"the standard output could not be written: {output.loss.strerror}",
        hint="Free some space and call the same command again.",
    )


if __name__ == "__main__":
    sys.exit(main())
