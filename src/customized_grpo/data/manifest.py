"""The manifest: one JSON object a line, paths relative to the manifest's folder and never outside it.

    {"id": "dog-3", "prompt": "a dog on a beach", "references": ["dog/01.jpg"], "masks": ["dog/01.mask.png"],
     "target": "dog/04.jpg", "subject": "dog", "meta": {"category": "live"}}

`id`, `prompt` and `references` are required. Loading reads every line and reports every mistake at once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from customized_grpo.data.image_facts import Facts, Gallery, mask_size_problem
from customized_grpo.errors import UserError
from customized_grpo.files import write_text

MAX_LINE_BYTES = 1 << 20
KEYS = ("id", "prompt", "references", "masks", "target", "subject", "meta")
REQUIRED = ("id", "prompt", "references")

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """One training or evaluation row; paths are absolute.

    Attributes:
        id: Unique in its manifest; part of the seed of every sample drawn for the row.
        prompt: What the image should show.
        references: Images of the subject, at least one.
        masks: One per reference (255 = subject), or none at all.
        target: Another view of the subject that fits the prompt; the copy score needs it.
        subject: Which subject it is; the unit that confidence intervals resample.
        meta: Anything else, kept as it is.
    """

    id: str
    prompt: str
    references: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    target: Path | None = None
    subject: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


class RowProblem(Exception):
    """One mistake in one row of a manifest or of a source that becomes one."""


def load_manifest(path: Path, *, require_masks: bool, check_images: bool = True) -> list[Row]:
    """Read and check a manifest.

    Args:
        path: The JSONL file: UTF-8 with or without BOM, LF or CRLF; blank lines are skipped.
        require_masks: Whether a row without masks is a mistake.
        check_images: Decode every file once, one at a time in memory, and compare the size of each mask with
            its reference. A truncated file is found here and not in the middle of training.

    Returns:
        The rows in the order of the file.

    Raises:
        UserError: The file cannot be read, holds no row, or any row is bad; every bad row is listed with its
            line number and all of its mistakes.
    """
    scan = scan_manifest(path, Gallery() if check_images else None, require_masks=require_masks)
    if scan.problems:
        count = len({number for number, _ in scan.problems})
        listing = "\n".join(f"  line {number}: {problem}" for number, problem in scan.problems)
        raise UserError(f"{path}: {count} bad row{'s' if count > 1 else ''}\n{listing}")
    if not scan.rows:
        raise UserError(f"{path} holds no rows")
    return [row for _, row in scan.rows]


@dataclass(frozen=True)
class Scan:
    """The rows of a manifest and its problems.

    Attributes:
        rows: Line number and row of every good line, in the order of the file.
        problems: Line number and mistake; a line may have several.
    """

    rows: list[tuple[int, Row]]
    problems: list[tuple[int, str]]


def scan_manifest(path: Path, gallery: Gallery | None, *, require_masks: bool) -> Scan:
    """Read every line of a manifest; collect good rows and problems.

    Args:
        path: As for `load_manifest`.
        gallery: Where images are opened and remembered; None opens none.
        require_masks: As for `load_manifest`.

    Raises:
        UserError: The file cannot be read.
    """
    reader = _Reader(path.parent.resolve(), require_masks, gallery)
    try:
        for number, line in _lines(path):
            reader.read(number, line)
    except OSError as error:
        raise UserError(f"cannot read manifest {path}: {error.strerror}") from error
    return Scan(reader.rows, reader.problems)


def write_manifest(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as a manifest that `load_manifest` reads back equal.

    Raises:
        UserError: A path of a row lies outside the manifest's folder.
        ValueError: Two rows share an id.
    """
    if len({row.id for row in rows}) != len(rows):
        raise ValueError("two rows share an id")
    folder = path.parent.resolve()
    lines = []
    for row in rows:
        item: dict[str, Any] = {"id": row.id, "prompt": row.prompt}
        item["references"] = [_relative(file, folder) for file in row.references]
        if row.masks:
            item["masks"] = [_relative(file, folder) for file in row.masks]
        if row.target is not None:
            item["target"] = _relative(row.target, folder)
        if row.subject is not None:
            item["subject"] = row.subject
        if row.meta:
            item["meta"] = dict(row.meta)
        lines.append(json.dumps(item, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(path, "".join(lines))


def _relative(file: Path, folder: Path) -> str:
    try:
        return (file.parent.resolve() / file.name).relative_to(folder).as_posix()
    except ValueError as error:
        raise UserError(
            f"{file} is not inside {folder}",
            hint="Write the manifest into the folder that holds its images.",
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield (line number, line) for every line that is not blank; None stands for a line over the limit."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                yield number, None
                continue
            if number == 1:
                line = line.removeprefix(_BOM)
            if line.strip():
                yield number, line


class _Reader:
    """Collects rows, problems and the ids seen so far."""

    def __init__(self, folder: Path, require_masks: bool, gallery: Gallery | None) -> None:
        self.folder = folder
        self.require_masks = require_masks
        self.gallery = gallery
        self.rows: list[tuple[int, Row]] = []
        self.problems: list[tuple[int, str]] = []
        self._first_line: dict[str, int] = {}

    def read(self, number: int, line: bytes | None) -> None:
        """Check one line; it becomes a row or a list of problems."""
        try:
            item = _parse(line)
        except RowProblem as problem:
            self.problems.append((number, str(problem)))
            return
        problems = [*_check_keys(item), *_check_types(item), *self._check_id(item, number)]
        if self.require_masks and not item.get("masks"):
            problems.append("has no `masks`, which the reward needs")
        row, path_problems = self._resolve(item)
        problems += path_problems
        if self.gallery is not None:
            problems += _check_images(self.gallery, row, aligned=not path_problems)
        if problems:
            self.problems += [(number, problem) for problem in problems]
        else:
            self.rows.append((number, row))

    def _check_id(self, item: dict[str, Any], number: int) -> list[str]:
        row_id = item.get("id")
        if not isinstance(row_id, str):
            return []
        first = self._first_line.setdefault(row_id, number)
        return [] if first == number else [f"id {row_id!r} was used on line {first} already"]

    def _resolve(self, item: dict[str, Any]) -> tuple[Row, list[str]]:
        """Return the row from well typed values, or the problems with its paths."""
        problems: list[str] = []

        def files(key: str) -> tuple[Path, ...]:
            value = item.get(key)
            names = value if isinstance(value, list) else [value] if key == "target" else []
            found = []
            for name in names:
                if isinstance(name, str) and name:
                    try:
                        found.append(resolve_path(self.folder, key, name))
                    except RowProblem as problem:
                        problems.append(str(problem))
            return tuple(found)

        target = files("target")
        row = Row(
            id=item.get("id", ""),
            prompt=item.get("prompt", ""),
            references=files("references"),
            masks=files("masks"),
            target=target[0] if target else None,
            subject=item.get("subject"),
            meta=item.get("meta") or {},
        )
        return row, problems


def _check_images(gallery: Gallery, row: Row, *, aligned: bool) -> list[str]:
    """Decode the row's files; compare sizes only if no file is missing from the row's lists."""
    targets = () if row.target is None else (row.target,)
    images = [gallery.image(file) for file in (*row.references, *targets)]
    masks = [gallery.mask(file) for file in row.masks]
    problems = [found for found in (*images, *masks) if isinstance(found, str)]
    for file, image, mask in zip(row.masks, images, masks, strict=False) if aligned else ():
        if isinstance(image, Facts) and isinstance(mask, Facts) and image.size != mask.size:
            problems.append(mask_size_problem(file, mask.size, image.size))
    return problems


def _parse(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise RowProblem(f"is longer than {MAX_LINE_BYTES:,} bytes")
    try:
        item = json.loads(line.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise RowProblem(f"is not UTF-8 (byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        raise RowProblem(f"is not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise RowProblem("is nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise RowProblem(f"is not JSON: {error}") from error
    if not isinstance(item, dict):
        raise RowProblem(f"is {kind_of(item)}, not an object {{...}}")
    try:
        json.dumps(item, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RowProblem("holds half of a surrogate pair, which is not a character") from error
    return item


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    item: dict[str, Any] = {}
    for key, value in pairs:
        if key in item:
            raise RowProblem(f"has the key {key!r} twice")
        item[key] = value
    return item


def _refuse_constant(name: str) -> None:
    raise RowProblem(f"is not JSON: {name} is no number")


def _check_keys(item: dict[str, Any]) -> list[str]:
    problems = [f"lacks `{key}`" for key in REQUIRED if key not in item]
    for key in item:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            advice = f"did you mean `{near[0]}`?" if near else "put it into `meta`"
            problems.append(f"unknown key {key!r}; {advice}")
    return problems


def _check_types(item: dict[str, Any]) -> list[str]:
    """Return the problems with the values of known keys; null stands for an absent optional key."""
    problems = []
    for key in ("id", "prompt", "target", "subject"):
        value = item.get(key)
        if key in item and (value is not None or key in REQUIRED):
            if not isinstance(value, str):
                problems.append(f"`{key}` must be a string, not {kind_of(value)}")
            elif not value.strip():
                problems.append(f"`{key}` is empty")
    for key in ("references", "masks"):
        value = item.get(key)
        if key in item and (value is not None or key in REQUIRED):
            if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
                problems.append(f"`{key}` must be a list of paths")
            elif not value:
                problems.append(f"`{key}` is an empty list")
    meta = item.get("meta")
    if meta is not None and not isinstance(meta, dict):
        problems.append(f"`meta` must be an object, not {kind_of(meta)}")
    references = item.get("references")
    masks = item.get("masks")
    if isinstance(references, list) and isinstance(masks, list) and masks and len(masks) != len(references):
        problems.append(f"has {len(masks)} masks for {len(references)} references")
    return problems


def resolve_path(folder: Path, key: str, name: str) -> Path:
    """Return the absolute path of a file that really lies inside the folder.

    Args:
        folder: Resolved folder that paths are relative to.
        key: What the path is in its row, for the message.
        name: The path as the row has it.

    Raises:
        RowProblem: The path is absolute, contains `..`, leaves the folder by a link, or is no regular file.
    """
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive:
        raise RowProblem(f"`{key}`: {name!r} is absolute; paths are relative to {folder}")
    if ".." in PureWindowsPath(name).parts:  # splits at both kinds of slash
        raise RowProblem(f"`{key}`: {name!r} contains `..`")
    path = folder / name
    try:
        resolved = path.resolve()
        if not resolved.is_relative_to(folder):
            raise RowProblem(f"`{key}`: {name!r} is a link that leaves {folder}")
        exists = resolved.exists()
        is_regular = resolved.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL byte, a name too long
        raise RowProblem(f"`{key}`: {name!r} is no usable path: {error}") from error
    if not exists:
        raise RowProblem(f"`{key}`: {name!r} does not exist")
    if not is_regular:
        raise RowProblem(f"`{key}`: {name!r} is not a regular file")
    return path


def kind_of(value: object) -> str:
    """Return the type of a JSON value with its article, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
