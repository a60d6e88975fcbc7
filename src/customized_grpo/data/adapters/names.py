"""The layouts by name, for the command line: this module imports nothing heavy."""

from __future__ import annotations

from enum import StrEnum


class LayoutName(StrEnum):
    """A published layout that `cgrpo data` reads."""

    syncd = "syncd"
    syncd_pairs = "syncd-pairs"
    subjects200k = "subjects200k"
    uno_1m = "uno-1m"
    uno = "uno"
    folder = "folder"
    dreambench = "dreambench"


class MaskChoice(StrEnum):
    """Where the masks of a converted data set come from."""

    shipped = "shipped"
    alpha = "alpha"
    none = "none"


class SubjectChoice(StrEnum):
    """What tells the subjects of a `uno` list apart, which does not name them."""

    reference = "reference"
    folder = "folder"
