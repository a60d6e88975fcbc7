"""Shared by the verbs: arguments that several have, checks of them, --json, and tables."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from customized_grpo import files
from customized_grpo.disk import check_writable
from customized_grpo.errors import UserError
from customized_grpo.hub import is_hub_id
from customized_grpo.plain_text import one_line
from customized_grpo.reporting.lines import terminal_width

GAP = 2  # blanks between the columns of a table
UNBROKEN = 100_000  # columns, more than any line needs


def complete_presets(typed: str) -> list[str]:
    """Return the presets that a shell can complete; it knows files itself."""
    from customized_grpo.config.loading import preset_names

    return [name for name in preset_names() if name.startswith(typed)]


Recipe = Annotated[
    str, typer.Argument(help="Preset, or path of a YAML file.", autocompletion=complete_presets)
]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings that replace the recipe's."),
]

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
        help="Allow the recipe to name parts in this Python module of yours; repeatable.",
    ),
]
"""Allows code by dotted path, see `extensions`; it has done its work when the verb begins."""


def _check_output_file(option: typer.CallbackParam, file: Path | None) -> Path | None:
    """Refuse a file that could not be written before any work is done.

    Raises:
        UserError: It is not a file in an existing folder.
    """
    if file is None:
        return None
    name = option.opts[0]
    if file.is_symlink() or (file.exists() and not file.is_file()):  # /dev/stdout and /dev/null among them
        raise UserError(f"{name} {file}: exists and is not an ordinary file", hint="Name another file.")
    if not file.parent.is_dir():
        raise UserError(
            f"{name} {file}: not a file in an existing folder", hint="Create the folder or name another file."
        )
    check_writable(file.parent)
    return file


def output_file(option: str, text: str) -> Any:
    """Return the annotation's option of a file to write, which is checked before the verb begins."""
    return typer.Option(option, metavar="FILE", callback=_check_output_file, help=text)


JsonFile = Annotated[
    Path | None,
    output_file("--json", "Also write the findings as JSON to this file."),
]
"""A file for `write_json_file`, in a folder that exists."""


def check_run(run: Path) -> Path:
    """Return `run` if it is the folder of a run.

    Raises:
        UserError: It is not; the hint lists the runs in the folder it would be in.
    """
    from customized_grpo.runs.folder import STARTING, is_run_folder, runs_in

    if is_run_folder(run):
        return run
    if (run / STARTING).exists():
        raise UserError(
            f"the run {run} was stopped while it was created, before anything was trained",
            hint="Start it again with `cgrpo train`, which takes the folder over.",
        )
    problem = "is not the folder of a run" if run.is_dir() else "is not a folder"
    neighbours = [str(path) for path in runs_in(run.parent)]
    hint = f"Runs here: {', '.join(neighbours)}." if neighbours else "Start a run with `cgrpo train toybox`."
    raise UserError(f"{run} {problem}", hint=hint)


def check_source(source: str) -> None:
    """Refuse a source that can only be a run that is not there, instead of asking the hub for it.

    Raises:
        UserError: There is no such folder, and it is no hub id or there are runs beside it.
    """
    from customized_grpo.embedded import EMBEDDED
    from customized_grpo.runs.folder import runs_in

    path = Path(source)
    if path.exists() or source in EMBEDDED:
        return
    # `runs/typo` has the form of a hub id
    neighbours = [str(run) for run in runs_in(path.parent)]
    if neighbours:
        raise UserError(f"{source} is not a folder", hint=f"Runs here: {', '.join(neighbours)}.")
    if not is_hub_id(source):
        raise UserError(
            f"{source} is neither a folder nor a hub id",
            hint='Give the folder of a run or of a model, "toybox", or a hub id such as "owner/name".',
        )


def check_web(verb: str) -> None:
    """Refuse a verb that serves pages where the web framework is not installed.

    Raises:
        UserError: Says how to install it.
    """
    for package in ("fastapi", "uvicorn"):
        try:
            # by import: a package can be found, and still lack what it needs itself
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"{verb} needs {package}, which is not installed",
                hint="Install it with `pip install 'customized-grpo[serve]'`.",
            ) from error


def check_files(paths: list[Path], option: str) -> None:
    """Refuse paths that are not files, all at once.

    Raises:
        UserError: Names the option and every such path.
    """
    missing = [str(path) for path in paths if not path.is_file()]
    if not missing:
        return
    hint = None
    if any(path.is_dir() for path in paths):
        hint = f"A folder is not read: give {option} for each of its files."
    # Path makes one slash of two: the first part of an address is "http:"
    elif any(path.parts[0] in ("http:", "https:", "s3:", "gs:") for path in paths if path.parts):
        hint = "Nothing is fetched from the network: download the file first."
    raise UserError(f"{option}: no such file: {', '.join(missing)}", hint=hint)


def parse_checkpoint(text: str | None) -> int | Literal["best"] | None:
    """Return what --checkpoint names: an iteration, "best", or None for the newest.

    Raises:
        UserError: It is neither.
    """
    if text is None or text == "best":
        return "best" if text else None
    # not isdigit, which takes superscripts as well, and `int` refuses them
    if text.isdecimal():
        return int(text)
    raise UserError(
        f"--checkpoint {text!r} is no checkpoint", hint="Write the number of its iteration, or best."
    )


def parse_size(text: str) -> tuple[int, int]:
    """Return the height and width that --size gives.

    Raises:
        UserError: It is not HxW.
    """
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise UserError(f"--size {text!r}: not HxW", hint="Write height x width in pixels, such as 768x1024.")
    return int(match[1]), int(match[2])


def write_json_file(file: Path | None, value: Mapping[str, Any]) -> None:
    """Write the file of --json, whole or not at all; without --json, do nothing."""
    if file is not None:
        files.write_json(file, value)


def print_note(note: str) -> None:
    """Say on stderr what the user should know."""
    print(f"note: {note}", file=sys.stderr)


def problem_count(count: int) -> str:
    """Return for example "2 problems found"."""
    return f"{count} problem{'s' if count > 1 else ''} found"


def fits(rows: Sequence[Sequence[str]]) -> bool:
    """Return whether a table has no broken cells where it is printed; in a file or pipe it never has any."""
    width = terminal_width()
    if width is None:
        return True
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return sum(widths) + GAP * (len(widths) - 1) <= width


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned text: at most as wide as a terminal, and with unbroken lines in a file or pipe.

    Args:
        rows: Of equally many cells; brackets and the like in them have no meaning.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = terminal_width() or UNBROKEN
    grid = Table.grid(padding=(0, GAP, 0, 0))
    names = max((len(one_line(row[0])) for row in rows), default=0)
    # names stay whole where there is room for them, and nothing is ever cut off
    for number in range(len(rows[0]) if rows else 0):
        grid.add_column(overflow="fold", no_wrap=number == 0 and names <= width // 2)
    for row in rows:
        grid.add_row(*(Text(one_line(cell)) for cell in row))  # a plain str would be read as markup
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(grid)
    # rich fills every line with blanks
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
