"""The manifest: one JSON object a line, paths relative to the manifest's folder and never outside it.

    {"id": "dog-3", "prompt": "a dog on a beach", "references": ["dog/01.jpg"], "masks": ["dog/01.mask.png"],
     "target": "dog/04.jpg", "subject": "dog", "meta": {"category": "live"}}

`id`, `prompt` and `references` are required; `references` is an empty list in rows of text alone. Loading
reads every line and reports every mistake at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from customized_grpo.data.image_info import ImageInfo, ImageInspector, mask_size_problem
from customized_grpo.data.listing import a_few
from customized_grpo.data.row_checks import (
    MAX_LINE_BYTES,
    RowProblem,
    key_problems,
    parse_line,
    type_problems,
)
from customized_grpo.data.row_paths import RowPaths
from customized_grpo.errors import UserError
from customized_grpo.files import write_text

BOM = b"\xef\xbb\xbf"
_JSON_LIST = (
    "starts a JSON list; a manifest has one object a line (`jq -c '.[]' LIST.json > manifest.jsonl` makes it)"
)


@dataclass(frozen=True)
class Row:
    """One training or evaluation row; paths are absolute.

    Attributes:
        id: Unique in its manifest; part of the seed of every sample drawn for the row.
        prompt: What the image should show.
        references: Images of the subject; none in a row of text alone.
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


NO_MASKS = "has no `masks`, which the reward needs"
MASKS_HINT = (
    "Make masks with `cgrpo data masks {path} --segmenter MODEL.onnx`, see docs/masks.md, or score the whole "
    "image: segment: none in the recipe's identity rewards."
)


def load_manifest(
    path: Path, *, require_masks: bool, check_images: bool = True, inspector: ImageInspector | None = None
) -> list[Row]:
    """Read and check a manifest.

    Args:
        path: The JSONL file: UTF-8 with or without BOM, LF or CRLF; blank lines are skipped.
        require_masks: Whether a row without masks is a mistake.
        check_images: Decode every file once, one at a time in memory, and compare the size of each mask with
            its reference. A truncated file is found here and not in the middle of training.
        inspector: Keeps what was found of the files; None makes a new one.

    Returns:
        The rows in the order of the file.

    Raises:
        UserError: The file cannot be read, holds no row, or any row is bad; the mistakes are listed with
            their line numbers, a few of each kind.
    """
    opener = (inspector or ImageInspector()) if check_images else None
    scan = scan_manifest(path, opener, require_masks=require_masks)
    if scan.problems:
        count = len({number for number, _ in scan.problems})
        listing = a_few((f"line {number}", problem) for number, problem in scan.problems)
        lines = "".join(f"\n  {line}" for line in listing)
        lacks_masks = any(problem == NO_MASKS for _, problem in scan.problems)
        hint = MASKS_HINT.format(path=path) if lacks_masks else None
        raise UserError(f"{path}: {count:,} bad row{'s' if count > 1 else ''}{lines}", hint=hint)
    if not scan.rows:
        raise UserError(
            f"{path} holds no rows",
            hint="Write one JSON object in each line, or make the file with `cgrpo data convert`.",
        )
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


def scan_manifest(path: Path, inspector: ImageInspector | None, *, require_masks: bool) -> Scan:
    """Read every line of a manifest; collect good rows and problems.

    Args:
        path: As for `load_manifest`.
        inspector: Where images are opened and remembered; None opens none.
        require_masks: As for `load_manifest`.

    Raises:
        UserError: The file cannot be read.
    """
    reader = LineReader(path.parent.resolve(), inspector, require_masks=require_masks)
    scan = Scan([], [])
    try:
        with path.open("rb") as file:
            for number, row, problems in reader.read_all(file):
                scan.problems.extend((number, problem) for problem in problems)
                if row is not None:
                    scan.rows.append((number, row))
    except OSError as error:
        raise UserError(f"cannot read manifest {path}: {error.strerror}") from error
    return scan


def write_manifest(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as a manifest that `load_manifest` reads back equal.

    Raises:
        UserError: A path of a row lies outside the manifest's folder.
        ValueError: Two rows share an id.
    """
    # An id seeds the noise of a row: two rows of one id would get the same.
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
        # only the folder is resolved: in the hub's cache the file itself is a link to a blob without a name
        return (file.parent.resolve() / file.name).relative_to(folder).as_posix()
    except ValueError as error:
        raise UserError(
            f"{file} is not inside {folder}",
            hint="Write the manifest into the folder that holds its images.",
        ) from error


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yield (line number, line) for every line that is not blank; None stands for a line over the limit."""
    number = 0
    # a limit, because a file without line breaks is one line of any size
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)
            yield number, None
            continue
        if number == 1:
            line = line.removeprefix(BOM)
        if line.strip():
            yield number, line


class LineReader:
    """Checks the lines of one manifest; knows the ids that it has seen.

    Args:
        folder: Resolved folder of the manifest.
        inspector: Where images are opened and remembered; None opens none.
        require_masks: Whether a row without masks is a mistake.
    """

    def __init__(self, folder: Path, inspector: ImageInspector | None, *, require_masks: bool) -> None:
        self.folder = folder
        self.require_masks = require_masks
        self.inspector = inspector
        self._paths = RowPaths(folder)
        self._first_line: dict[str, int] = {}

    def read_all(self, file: BinaryIO) -> Iterator[tuple[int, Row | None, list[str]]]:
        """Yield line number, row (None if it is bad) and problems of every line that is not blank."""
        is_first = True
        for number, line in _lines(file):
            if is_first and line is not None and line.lstrip().startswith(b"["):
                yield number, None, [_JSON_LIST]  # every further line would be one more mistake
                return
            is_first = False
            yield number, *self.read(number, line)

    def read(self, number: int, line: bytes | None) -> tuple[Row | None, list[str]]:
        """Check one line; return its row (None if it is bad) and its problems."""
        try:
            item = parse_line(line)
        except RowProblem as problem:
            return None, [str(problem)]
        problems = [*key_problems(item), *type_problems(item), *self._check_id(item, number)]
        if self.require_masks and not item.get("masks"):
            problems.append(NO_MASKS)
        # a bad row is resolved and its images are opened as well, so that one pass lists every mistake
        row, path_problems = self._resolve(item)
        problems += path_problems
        if self.inspector is not None:
            problems += _check_images(self.inspector, row, aligned=not path_problems)
        return (None if problems else row), problems

    def _check_id(self, item: dict[str, Any], number: int) -> list[str]:
        row_id = item.get("id")
        if not isinstance(row_id, str):
            return []
        # The first line keeps the id; every later one is a mistake.
        first = self._first_line.setdefault(row_id, number)
        return [] if first == number else [f"id {row_id!r} was used on line {first} already"]

    def _resolve(self, item: dict[str, Any]) -> tuple[Row, list[str]]:
        """Return the row from well typed values, or the problems with its paths."""
        problems: list[str] = []

        def files(key: str) -> tuple[Path, ...]:
            value = item.get(key)
            # values of a wrong type are reported by `type_problems`; here they only must not raise
            names = value if isinstance(value, list) else [value] if key == "target" else []
            paths = []
            for name in names:
                if isinstance(name, str) and name:
                    try:
                        paths.append(self._paths.resolve(key, name))
                    except RowProblem as problem:
                        problems.append(str(problem))
            return tuple(paths)

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


def _check_images(inspector: ImageInspector, row: Row, *, aligned: bool) -> list[str]:
    """Decode the row's files; compare sizes only if no file is missing from the row's lists."""
    targets = () if row.target is None else (row.target,)
    images = [inspector.image(file) for file in (*row.references, *targets)]
    masks = [inspector.mask(file) for file in row.masks]
    problems = [info for info in (*images, *masks) if isinstance(info, str)]
    for file, image, mask in zip(row.masks, images, masks, strict=False) if aligned else ():
        if isinstance(image, ImageInfo) and isinstance(mask, ImageInfo) and image.size != mask.size:
            problems.append(mask_size_problem(file, mask.size, image.size))
    return problems
