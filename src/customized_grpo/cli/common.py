"""What several verbs share: the RUN argument, the option --trust, and results as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from customized_grpo import files
from customized_grpo.errors import UserError
from customized_grpo.hub import is_hub_id

Run = Annotated[Path, typer.Argument(help="Folder of a run, for example runs/toybox.")]


def _trust(modules: list[str] | None) -> list[str] | None:
    if modules:
        from customized_grpo import extensions

        extensions.trust(modules)
    return modules


Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        metavar="MODULE",
        callback=_trust,
        help="Allow the recipe to name parts in this Python module of yours; may be repeated.",
    ),
]
"""Allows code by dotted path, see `extensions`; it has done its work when the verb begins."""


def check_run(run: Path) -> Path:
    """Return `run` if it is the folder of a run.

    Raises:
        UserError: It is not; the hint lists the runs in the folder it would be in.
    """
    from customized_grpo.runs.folder import is_run_folder, runs_in

    if is_run_folder(run):
        return run
    what = "is not the folder of a run" if run.is_dir() else "is not a folder"
    runs = [str(path) for path in runs_in(run.parent)]
    hint = f"Runs here: {', '.join(runs)}." if runs else "Start one with `cgrpo train toybox`."
    raise UserError(f"{run} {what}", hint=hint)


def check_source(source: str) -> None:
    """Refuse what can only be a run that is not there, rather than ask the hub for it.

    Raises:
        UserError: There is no such folder, and it is no hub id or there are runs beside it.
    """
    from customized_grpo.runs.folder import runs_in

    path = Path(source)
    if path.exists() or source == "toybox" or (is_hub_id(source) and not runs_in(path.parent)):
        return
    check_run(path)


def check_files(paths: list[Path], option: str) -> None:
    """Refuse paths that are not files, all at once.

    Raises:
        UserError: Names the option and every such path.
    """
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise UserError(f"{option}: no such file: {', '.join(missing)}")


def check_json_file(file: Path | None) -> None:
    """Refuse a --json that could not be written, before any work is done.

    Raises:
        UserError: It is not a file in an existing folder.
    """
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise UserError(f"--json {file}: not a file in an existing folder")


def write_json_file(file: Path | None, value: Mapping[str, Any]) -> None:
    """Write what --json asks for, whole or not at all; without --json, nothing.

    Raises:
        UserError: The disk refuses.
    """
    if file is None:
        return
    try:
        files.write_json(file, value)
    except OSError as error:
        raise UserError(f"--json {file}: {error.strerror}") from error


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned text."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
