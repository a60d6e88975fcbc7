"""Choices of `cgrpo data` by name; this module imports nothing heavy."""

from __future__ import annotations

from enum import StrEnum


class MaskChoice(StrEnum):
    """Where the masks of a converted data set come from."""

    shipped = "shipped"
    alpha = "alpha"
    none = "none"


class SubjectChoice(StrEnum):
    """How the subjects of a `uno` list, which does not name them, are found."""

    reference = "reference"
    folder = "folder"
