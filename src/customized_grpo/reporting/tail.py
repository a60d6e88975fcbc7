"""Following a metrics file that another process writes: each look gives the records that are new."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from customized_grpo.errors import UserError
from customized_grpo.reporting.metrics import DAMAGED, Record, parse_line, problem_of

REMEMBERED = 256
"""Bytes before the place that was read to: by them a file that was rewritten is known."""


@dataclass(frozen=True)
class Change:
    """What a look at the file has found.

    Attributes:
        restarted: Whether earlier records no longer hold: a resumed run has dropped some, or a new one began.
        records: The records since then, oldest first.
    """

    restarted: bool = False
    records: list[Record] = field(default_factory=list)


class MetricsTail:
    """Reads what was appended to a metrics file since the last look, with the checks of `read_metrics`.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._line = 0
        self._inode = 0
        self._before = b""

    def read(self) -> Change:
        """Return what has changed; a line that is not written to its end yet is left for a later look.

        Raises:
            UserError: A line before others is not a JSON object, or one is no record.
        """
        if not self.path.is_file():  # a named pipe in its place would be waited for
            restarted = self._offset > 0
            self._forget()
            return Change(restarted)
        with self.path.open("rb") as file:
            # Of the open file: the path may lead to another one by now.
            inode = os.fstat(file.fileno()).st_ino
            restarted = self._offset > 0 and not self._goes_on(file, inode)
            if restarted:
                self._forget()
            self._inode = inode
            file.seek(self._offset)
            content = file.read()
        # What follows the last line feed is still being written.
        return Change(restarted, self._take(content[: content.rfind(b"\n") + 1]))

    def _take(self, content: bytes) -> list[Record]:
        """Return the records of whole lines and move behind them."""
        lines = content.split(b"\n")[:-1]
        parsed = [parse_line(line) for line in lines]
        while parsed and parsed[-1] is None:  # torn by a kill; what resumes the run removes it
            parsed.pop()
        records: list[Record] = []
        for number, record in enumerate(parsed, start=self._line + 1):
            problem = "not a JSON object" if record is None else problem_of(record)
            if record is None or problem is not None:
                raise UserError(f"{self.path}, line {number}: {problem}", hint=DAMAGED)
            records.append(record)
        # Torn lines are not passed: a resume may take them away or complete the file behind them.
        taken = b"".join(line + b"\n" for line in lines[: len(records)])
        self._before = (self._before + taken)[-REMEMBERED:]
        self._offset += len(taken)
        self._line += len(records)
        return records

    def _goes_on(self, file: BinaryIO, inode: int) -> bool:
        """Return whether what was read is still there."""
        if inode != self._inode:
            return False
        file.seek(self._offset - len(self._before))
        return file.read(len(self._before)) == self._before

    def _forget(self) -> None:
        self._offset = 0
        self._line = 0
        self._before = b""
