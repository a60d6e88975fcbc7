"""The rows of a checked manifest, kept as the text that they are: a row is an object while it is used.

A row as objects takes 2 to 3 KB, as text a tenth of it, and a run uses a handful of rows at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from customized_grpo.data.manifest import BOM, LineReader, Row
from customized_grpo.errors import UserError

_BRACE = ord("{")
_NEWLINE = ord("\n")


class StoredRows(Sequence[Row]):
    """Rows of a manifest, each of which is read when it is asked for.

    The text is that of the start: a manifest that is edited during a run changes nothing. A row is checked
    each time, its paths included, so that nobody relies on an index from elsewhere for that.

    Args:
        path: The manifest, for messages.
        folder: Its resolved folder.
        content: Its text, of which all lines are right.
    """

    def __init__(self, path: Path, folder: Path, content: bytes) -> None:
        self.path = path
        self.folder = folder
        self._content = content.removeprefix(BOM)
        self._bounds = _line_bounds(self._content)

    def __len__(self) -> int:
        return len(self._bounds)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        # a range resolves negative indices, and raises IndexError, which ends a loop over the rows
        line = self._line(range(len(self))[index])
        # a new reader each time: one that remembers ids would call the second reading a repeat
        row, problems = LineReader(self.folder, None, require_masks=False).read(1, line)
        if row is None:
            raise UserError(
                f"{self.path}: a row was changed after the start: {'; '.join(problems)}",
                hint="Restore the file, then go on with `cgrpo resume`.",
            )
        return row

    def items(self) -> Iterator[dict[str, Any]]:
        """Yield the rows as plain JSON, without a look at their files; a hundred thousand take a second."""
        for position in range(len(self)):
            yield json.loads(self._line(position))

    def texts(self) -> list[tuple[str, str]]:
        """Return (id, prompt) of all rows."""
        return [(item["id"], item["prompt"]) for item in self.items()]

    def _line(self, position: int) -> bytes:
        start, stop = self._bounds[position].tolist()
        return self._content[start:stop]


def _line_bounds(content: bytes) -> NDArray[np.int64]:
    """Return the bounds of the lines that are not blank, [N, 2]."""
    text = np.frombuffer(content, np.uint8)
    ends = np.append(np.flatnonzero(text == _NEWLINE) + 1, len(content))
    starts = np.insert(ends[:-1], 0, 0)
    bounds = np.stack([starts, ends], axis=1)[starts < ends].astype(np.int64)
    is_row = text[bounds[:, 0]] == _BRACE
    for line in np.flatnonzero(~is_row).tolist():  # blank, or a row after spaces
        start, stop = bounds[line].tolist()
        is_row[line] = bool(content[start:stop].strip())
    rows: NDArray[np.int64] = bounds[is_row]
    return rows
