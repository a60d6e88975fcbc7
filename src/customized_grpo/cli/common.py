"""What several verbs share: the RUN argument, and results as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.errors import UserError

Run = Annotated[Path, typer.Argument(help="Folder of a run, for example runs/toybox.")]

Intervals = Mapping[str, Mapping[str, float]]
"""{metric: {"mean", "low", "high"}}, low and high bounding the 95 % interval."""


def check_run(run: Path) -> Path:
    """Return `run` if it is the folder of a run.

    Raises:
        UserError: It is not; the hint lists the runs in the folder it would be in.
    """
    if (run / "config.yaml").is_file():
        return run
    what = "has no config.yaml, so it is not the folder of a run" if run.is_dir() else "is not a folder"
    runs = sorted(str(found.parent) for found in run.parent.glob("*/config.yaml"))
    hint = f"Runs here: {', '.join(runs)}." if runs else "Start one with: cgrpo train toybox"
    raise UserError(f"{run} {what}", hint)


def check_files(paths: list[Path], option: str) -> None:
    """Refuse paths that are not files, all at once.

    Raises:
        UserError: Names the option and every such path.
    """
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise UserError(f"{option}: no such file: {', '.join(missing)}")


def results_table(base: Intervals, tuned: Intervals, difference: Intervals) -> str:
    """Return the metrics as aligned text: base, tuned and their difference, each with its 95 % interval."""
    rows = [["", "base", "tuned", "difference"]]
    rows += [
        [metric, *(_interval(column[metric]) for column in (base, tuned, difference))] for metric in base
    ]
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as text with columns under each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
