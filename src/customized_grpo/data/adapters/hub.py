"""Rows of a data set of the Hugging Face hub, read by its library `datasets`, one by one as they arrive.

SOURCE is a hub id, or a folder that `datasets` can read (parquet files, or images with a metadata.jsonl).
`--columns prompt=caption,references=image,target=edited` says which column is what; a key of the manifest
that is not named there is the column of its own name. `prompt` and `references` are needed; `references` may
hold one image or a list of them. Rows without `subject` are about the same one if their first reference is
the same image. No code of the data set is run: `datasets` has not done that since version 4.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from customized_grpo.data.adapters.base import (
    Draft,
    Item,
    Layout,
    Options,
    SourceImage,
    an_object,
    attempt,
    source_image,
    text_of,
)
from customized_grpo.data.row_checks import RowProblem, kind_of
from customized_grpo.errors import UserError, nearest

KEYS = ("id", "prompt", "references", "target", "subject")
"""What a column can be."""

DEFAULT_SPLIT = "train"
_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif"}


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield a row for each row of the split.

    Raises:
        UserError: `datasets` is not installed, or the data set cannot be read or lacks a column.
    """
    columns = read_columns(options.columns)
    name = source.as_posix()
    folder = source.resolve() if source.is_dir() else None
    rows = _rows(name, options.subset, options.split or DEFAULT_SPLIT)
    for number, row in enumerate(rows, 1):
        if number == 1:
            _check_columns(name, row, columns, given=options.columns is not None)
        yield attempt(number, partial(_draft, folder, number, row, columns))


def read_columns(text: str | None) -> dict[str, str]:
    """Return the column of each key, given what --columns says.

    Raises:
        UserError: It is not KEY=COLUMN,... of known keys.
    """
    columns = {key: key for key in KEYS}
    for part in [] if text is None else text.split(","):
        key, equals, column = part.partition("=")
        if not equals or not column.strip() or key.strip() not in KEYS:
            near = nearest(key.strip(), KEYS)
            advice = f"did you mean {near}=...? " if near is not None and near != key.strip() else ""
            raise UserError(
                f"--columns {part!r}: not KEY=COLUMN",
                hint=f"{advice}Keys are {', '.join(KEYS)}, such as prompt=caption,references=image.",
            )
        columns[key.strip()] = column.strip()
    return columns


def _rows(name: str, subset: str | None, split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows as they arrive, images as their files' bytes."""
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise UserError(
            "reading a data set of the hub needs the library datasets, which is not installed",
            hint="Install it with: pip install 'customized-grpo[datasets]'.",
        ) from error
    try:
        # streamed: a row at a time, so that a data set larger than the disk can be read in part
        rows = library.load_dataset(name, subset, split=split, streaming=True)
        yield from rows.decode(False)
    # the library passes on what network, file formats and its own checks raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"{name}: split {split!r} cannot be read: {reason}",
            hint="Is the name right, and the data set public, or `hf auth login` done? --split and "
            "--subset name another part.",
        ) from error


def _check_columns(name: str, row: Mapping[str, Any], columns: Mapping[str, str], *, given: bool) -> None:
    """Refuse a data set that lacks a column before any row is written."""
    needed = [key for key in KEYS if key in ("prompt", "references") or (given and columns[key] != key)]
    missing = [f"{key}={columns[key]}" for key in needed if columns[key] not in row]
    if missing:
        raise UserError(
            f"{name} lacks the columns {', '.join(missing)}; it has {', '.join(row)}",
            hint="Say which column is what: --columns prompt=COLUMN,references=COLUMN.",
        )


def _draft(folder: Path | None, number: int, row: object, columns: Mapping[str, str]) -> Draft:
    values = {key: an_object(row).get(column) for key, column in columns.items()}
    cells = values["references"] if isinstance(values["references"], list) else [values["references"]]
    if not cells:
        raise RowProblem(f"`{columns['references']}` is an empty list")
    references = tuple(_image(folder, cell, columns["references"]) for cell in cells)
    target = None if values["target"] is None else _image(folder, values["target"], columns["target"])
    row_id = values["id"]
    subject = values["subject"]
    return Draft(
        number=number,
        # the place is stable: a split has an order
        id=f"row-{number:06d}" if row_id is None else str(row_id),
        prompt=text_of(values, "prompt"),
        references=references,
        subject=f"image-{Path(references[0].name).stem}" if subject is None else text_of(values, "subject"),
        target=target,
    )


def _image(folder: Path | None, cell: object, column: str) -> SourceImage:
    """Return an image under a name by its content, so that rows share files.

    Raises:
        RowProblem: The cell holds none.
    """
    content = cell.get("bytes") if isinstance(cell, dict) else None
    if content is None and isinstance(cell, dict) and isinstance(cell.get("path"), str):
        return _file(folder, cell["path"], column)
    if not isinstance(content, bytes) or not content:
        raise RowProblem(f"`{column}` holds {kind_of(cell)}, not an image")
    ending = next((end for start, end in _ENDINGS.items() if content.startswith(start)), ".img")
    return SourceImage(f"{hashlib.sha256(content).hexdigest()[:16]}{ending}", content)


def _file(folder: Path | None, name: str, column: str) -> SourceImage:
    """Return a file that the library names in place of its content, as it does for folders of images.

    Raises:
        RowProblem: It is not in the folder that is read: a data set could name any file of this machine.
    """
    if folder is None:
        raise RowProblem(
            f"`{column}` names a file of the hub; `hf download` the data set and give its folder as SOURCE"
        )
    path = Path(name)
    if not path.is_relative_to(folder):
        raise RowProblem(f"`{column}`: {name!r} is not in {folder}")
    return source_image(folder, column, path.relative_to(folder).as_posix())


LAYOUT = Layout(
    name="hub",
    title="a data set of the Hugging Face hub, read by `datasets`",
    licence="that of the data set: see its card",
    takes=frozenset({"columns", "split", "subset"}),
    read=read,
)
