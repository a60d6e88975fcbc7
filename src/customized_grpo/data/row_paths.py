"""Paths of rows: each really lies inside the folder of its manifest, at the price of one look for most."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from customized_grpo.data.row_checks import is_utf8, resolve_path


class RowPaths:
    """The paths of the rows of one folder, checked as by `resolve_path`.

    Most files are plain: their folder lies inside, and they are no links. What is known of a folder serves
    all of its files, so that such a file costs one look instead of one for each part of its path.

    Args:
        folder: Resolved folder that paths are relative to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._text = str(folder)
        self._is_inside: dict[str, bool] = {}  # folder, as rows write it -> whether it really lies inside

    def resolve(self, key: str, name: str) -> Path:
        """Return the absolute path of a file.

        Args:
            key: What the path is in its row, for the message.
            name: The path as the row has it.

        Raises:
            RowProblem: As `resolve_path`.
        """
        if self._is_plain(name):
            return self.folder / name
        return resolve_path(self.folder, key, name)

    def _is_plain(self, name: str) -> bool:
        """Return whether a name has nothing that needs a closer look, and is a regular file inside."""
        # a drive, the other slash, a name that is no text: `resolve_path` knows what is wrong with them
        if name.startswith("/") or ".." in name or ":" in name or "\\" in name or not is_utf8(name):
            return False
        parent = name.rpartition("/")[0]
        is_inside = self._is_inside.get(parent)
        if is_inside is None:
            is_inside = self._looks_inside(parent)
            self._is_inside[parent] = is_inside
        if not is_inside:
            return False
        try:
            # not followed: a link may lead out of the folder
            mode = os.lstat(f"{self._text}/{name}").st_mode
        except (OSError, ValueError):
            return False
        return stat.S_ISREG(mode)

    def _looks_inside(self, parent: str) -> bool:
        try:
            return Path(os.path.realpath(f"{self._text}/{parent}")).is_relative_to(self.folder)
        except (OSError, ValueError):
            return False
