"""The common part of all adapters: the rows they yield, their options, and reading a JSON list."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

from customized_grpo.data.adapters.names import SubjectChoice
from customized_grpo.data.row_checks import RowProblem, kind_of, resolve_path
from customized_grpo.errors import UserError


@dataclass(frozen=True)
class Cut:
    """A rectangle of an image of known size.

    Attributes:
        box: Left, top, right, bottom in pixels; right and bottom lie outside.
        whole: Width and height the image must have for the box to mean what it says.
    """

    box: tuple[int, int, int, int]
    whole: tuple[int, int]


@dataclass(frozen=True)
class SourceImage:
    """An image of a source: a file or bytes, whole or a part.

    Attributes:
        name: Where it should lie in the converted data set, relative to its folder of images; the same name
            always means the same image.
        source: The file, or its content.
        cut: The part that is wanted, written as JPEG; None takes the file as it is.
    """

    name: str
    source: Path | bytes
    cut: Cut | None = None


@dataclass(frozen=True)
class MaskFile:
    """A mask that the source ships.

    Attributes:
        name: As for an image.
        path: The file.
        nonzero: Whether every value above 0 is subject and the size may differ (SynCD), in which case a mask
            of 0 and 255 in the size of the reference is written; otherwise the file is taken as it is.
    """

    name: str
    path: Path
    nonzero: bool = False


@dataclass(frozen=True)
class Draft:
    """A row of a source before its images are opened and copied.

    Attributes:
        number: Place in the source, from 1; for messages.
        id: Unique in the source.
        prompt: What the image should show.
        references: Images of the subject.
        subject: Which subject it is; the held-out rows are chosen by it.
        masks: One per reference, or none at all.
        target: Another view of the subject that fits the prompt.
        meta: Whatever else the source says.
    """

    number: int
    id: str
    prompt: str
    references: tuple[SourceImage, ...]
    subject: str
    masks: tuple[MaskFile, ...] = ()
    target: SourceImage | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bad:
    """A row that cannot be used, and why."""

    number: int
    reason: str


@dataclass(frozen=True)
class Dropped:
    """A row that a filter leaves out, and the filter's name."""

    number: int
    filter: str


@dataclass(frozen=True)
class Ignored:
    """A file of a source that makes no row; files of a kind are counted together."""

    kind: str


Item: TypeAlias = Draft | Bad | Dropped | Ignored


@dataclass(frozen=True)
class Options:
    """Options that only some layouts have; None means the layout's default.

    Attributes:
        images: Folder that the paths of a list are relative to.
        prompts: File with a prompt a line; `{}` stands for the subject's class.
        reference: Which photo of a subject is its reference.
        min_score: Lowest consistency score that is kept.
        min_quality: Lowest quality rating that is kept.
        subject: What tells subjects apart.
        columns: Which column of a table is what.
        split: Which split of a data set of the hub.
        subset: Which subset of it.
    """

    images: Path | None = None
    prompts: Path | None = None
    reference: str | None = None
    min_score: float | None = None
    min_quality: int | None = None
    subject: SubjectChoice | None = None
    columns: str | None = None
    split: str | None = None
    subset: str | None = None


@dataclass(frozen=True)
class Layout:
    """A published layout.

    Attributes:
        name: Its name on the command line.
        title: What it is, in a few words.
        licence: Under which terms its images are published, as far as known.
        takes: The fields of `Options` that mean something to it.
        read: Reads a source; raises UserError when the source as a whole is not of this layout.
    """

    name: str
    title: str
    licence: str
    takes: frozenset[str]
    read: Callable[[Path, Options], Iterator[Item]]

    def check(self, options: Options) -> None:
        """Refuse options that would be ignored.

        Raises:
            UserError: Names all of them, and those that the layout takes.
        """
        # by None and not by truth: `--min-quality 0` is given as well
        given = {f.name for f in fields(options) if getattr(options, f.name) is not None}
        unknown = sorted(given - self.takes)
        if unknown:
            takes = ", ".join(map(_option, sorted(self.takes))) or "none"
            raise UserError(
                f"{', '.join(map(_option, unknown))}: not an option of the layout {self.name}",
                hint=f"Its own options: {takes}.",
            )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def attempt(number: int, build: Callable[[], Draft | Dropped]) -> Item:
    """Return what `build` makes of row `number`, or the row as bad if it raises RowProblem."""
    try:
        return build()
    except RowProblem as problem:
        return Bad(number, str(problem))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: It cannot be read or is not JSON.
    """
    try:
        # utf-8-sig drops the BOM that editors on Windows write; json refuses it in a text
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start + 1})") from error
    # RecursionError: brackets that are nested thousands deep
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def read_json_list(path: Path) -> list[Any]:
    """Return the list in a JSON file.

    Raises:
        UserError: As `read_json`; also when it holds something else or nothing.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise UserError(f"{path} holds {kind_of(content)}, not a list of rows")
    if not content:
        raise UserError(f"{path} holds no rows", hint="Is it the complete file? Download it again.")
    return content


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank, stripped.

    Raises:
        UserError: It cannot be read, is not UTF-8, or all of it is blank.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start + 1})") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty", hint="Write one entry in each line.")
    return lines


def an_object(item: object) -> Mapping[str, Any]:
    """Return a row that is an object; raises RowProblem for anything else."""
    if not isinstance(item, dict):
        raise RowProblem(f"is {kind_of(item)}, not an object {{...}}")
    return item


def text_of(item: Mapping[str, Any], key: str) -> str:
    """Return a string that is not blank; raises RowProblem for anything else."""
    value = item.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RowProblem(f"`{key}` must be a text that is not empty")
    return value.strip()


def number_of(value: object) -> float | None:
    """Return a number, or None for anything else, booleans included."""
    # bool is a subclass of int, and `true` is no score of 1
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def source_image(folder: Path, key: str, name: str) -> SourceImage:
    """Return a file of a source as an image that keeps its place; raises RowProblem if it is not there."""
    path = resolve_path(folder, key, name)
    return SourceImage(path.relative_to(folder).as_posix(), path)


def source_folder(source: Path) -> Path:
    """Return the source as a resolved folder.

    Raises:
        UserError: It is none.
    """
    if not source.is_dir():
        raise UserError(
            f"{source} is not a folder", hint="This layout is read from the folder that holds it."
        )
    return source.resolve()
