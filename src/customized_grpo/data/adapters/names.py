"""Choices of `cgrpo data` by name; this module imports nothing heavy."""

from __future__ import annotations

from enum import StrEnum


class MaskChoice(StrEnum):
    """Where the masks of a converted data set come from."""

    shipped = "shipped"
    alpha = "alpha"
    none = "none"


class SubjectChoice(StrEnum):
    """What tells the subjects of a `uno` list apart, which does not name them."""

    reference = "reference"
    folder = "folder"
