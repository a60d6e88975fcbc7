"""The metrics file: one JSON object a line, appended and flushed as the run goes.

``metrics.jsonl`` is the record a run is judged by, so it is strict JSON (no NaN), survives a kill in the
middle of a line, and after ``resume`` holds every iteration exactly once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from customized_grpo.errors import UserError
from customized_grpo.files import sync_open, write_bytes
from customized_grpo.links import open_in_place
from customized_grpo.reporting.trackers import Trackers

Scalar = str | int | float | None
Record = dict[str, Scalar]

_SCALARS = (str, int, float, type(None))  # as a tuple: a union would be made anew for every value

KINDS = ("train", "eval", "event")


class MetricsWriter:
    """Appends records to a metrics file; each is on disk (flushed) when `write` returns.

    Args:
        path: The file, created with its folder when absent; an existing one is appended to. A line that a
            killed process left torn at the end is removed first, or it would swallow the next record.
        trackers: Optional trackers that get the same numbers; their failures never reach the caller.
    """

    def __init__(self, path: Path, trackers: Trackers | None = None) -> None:
        self.path = path
        self._trackers = trackers
        path.parent.mkdir(parents=True, exist_ok=True)
        # A torn last line goes away now: a record appended to it would be lost with it.
        if path.exists():
            _rewrite(path, read_metrics(path))
        # Appended, so that a second writer cannot overwrite lines.
        self._file: BinaryIO = os.fdopen(open_in_place(path, os.O_WRONLY | os.O_APPEND), "ab")

    @classmethod
    def open(
        cls,
        path: Path,
        upto_iteration: int | None = None,
        trackers: Trackers | None = None,
        *,
        lost_evaluations: Collection[int] = (),
    ) -> MetricsWriter:
        """Open for appending, without the records of iterations that a resumed run will do again.

        Args:
            path: The metrics file; may be absent.
            upto_iteration: The iteration of the checkpoint the run resumes from: records of later ones
                are removed, this one's are kept. None keeps all.
            trackers: As for the constructor.
            lost_evaluations: Iterations whose evaluation is made again: their old record is removed as well.

        Raises:
            UserError: A line other than the last is not a JSON object.
        """
        # A resumed run does these iterations again and writes their records again.
        if upto_iteration is not None and path.exists():
            records = read_metrics(path)
            kept = [record for record in records if iteration_of(record) <= upto_iteration]
            _rewrite(path, [record for record in kept if not _is_evaluation(record, lost_evaluations)])
        return cls(path, trackers)

    def write(self, record: Mapping[str, Scalar]) -> None:
        """Append one record. Non-finite numbers become null: "not measured", never a fake value.

        Args:
            record: Needs `kind` (train, eval or event) and `iteration`; other values are scalars or None.

        Raises:
            ValueError: `kind` or `iteration` is missing or wrong.
            TypeError: A value is a tensor, list or other non-scalar.
        """
        if record.get("kind") not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {record.get('kind')!r}")
        if not isinstance(record.get("iteration"), int):
            raise ValueError(f"iteration must be an integer, not {record.get('iteration')!r}")
        clean = {key: _jsonable(key, value) for key, value in record.items()}
        # the line is complete by now: a value that is refused leaves nothing in the file
        self._file.write(_line(clean))
        # to the operating system: a kill of this process loses nothing; `sync` is for power cuts
        self._file.flush()
        if self._trackers is not None:
            self._trackers.log(clean)

    def images(self, paths: Sequence[Path], iteration: int) -> None:
        """Show the trackers what an evaluation has drawn, see `Trackers.log_images`."""
        if self._trackers is not None:
            self._trackers.log_images(paths, iteration)

    def sync(self) -> None:
        """Have every record on the disk itself, where a power cut cannot take it back."""
        self._file.flush()
        sync_open(self._file.fileno())

    def close(self) -> None:
        """Close the file and the trackers; the file is synced to disk first."""
        # the file first, as a tracker may take long to end
        if not self._file.closed:
            self.sync()
            self._file.close()
        if self._trackers is not None:
            self._trackers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[Record]:
    """Return all records of a metrics file, oldest first.

    Lines at the end that do not parse are forgiven and left out: the process died while writing the last one,
    or a power cut came before the disk had written the last ones.

    Raises:
        UserError: The file is absent, a line before others is not a JSON object, or one is no record.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist", hint="Is this the folder of a run that has started?")
    # at the byte of a line feed alone: str.splitlines would also cut at U+2028, which JSON leaves as it is
    lines = path.read_bytes().split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    parsed = [parse_line(line) for line in lines]
    # Torn lines at the end are a crash's; the same in the middle is damage.
    while parsed and parsed[-1] is None:
        parsed.pop()
    records: list[Record] = []
    for number, record in enumerate(parsed, start=1):
        if record is None:
            raise UserError(f"{path}, line {number}: not a JSON object", hint=DAMAGED)
        problem = problem_of(record)
        if problem is not None:
            raise UserError(f"{path}, line {number}: {problem}", hint=DAMAGED)
        records.append(record)
    return records


def iteration_of(record: Record) -> int:
    """Return the iteration of a record that `read_metrics` returned."""
    return cast(int, record["iteration"])


def parse_line(line: bytes) -> Record | None:
    """Return the record of a line; None if it is not a JSON object, as a torn line is not."""
    try:
        # NaN and Infinity are no JSON and never written: "not measured", as null is
        record = json.loads(line, parse_constant=lambda name: None)
    except (ValueError, RecursionError):  # also UnicodeDecodeError
        return None
    return record if isinstance(record, dict) else None


def problem_of(record: Record) -> str | None:
    """Return why `MetricsWriter` cannot have written this; None if it can."""
    iteration = record.get("iteration")
    # True is an int in Python.
    if not isinstance(iteration, int) or isinstance(iteration, bool) or iteration < 0:
        return f"iteration must be a whole number, not {iteration!r}"
    for key, value in record.items():
        if not isinstance(value, _SCALARS):
            return f"{key} must be one value, not {value!r}"
    return None


DAMAGED = "Only lines at the end may be torn by a crash; the file was edited or the disk damaged it."


def _is_evaluation(record: Record, iterations: Collection[int]) -> bool:
    return record.get("kind") == "eval" and record.get("iteration") in iterations


def _jsonable(key: str, value: Scalar) -> Scalar:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"metric {key!r} is a {type(value).__name__}, not a number or text; call .item() first")


def _line(record: Mapping[str, Scalar]) -> bytes:
    return json.dumps(record, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def _rewrite(path: Path, records: list[Record]) -> None:
    """Replace the file in one step, so that a kill here loses neither the old lines nor the new file."""
    content = b"".join(_line(record) for record in records)
    # Most files are whole: they are left alone, and so is their time of writing.
    if content == path.read_bytes():
        return
    write_bytes(path, content, durable=True)
