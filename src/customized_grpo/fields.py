"""Strict settings: the base class of sections and of the options of parts, and types of single values."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

MAX_SEED = 2**63 - 1
MAX_COUNT = 10**9
"""The largest number of anything; more is a slip of the finger, and would fill the memory."""
MAX_FLOAT = 3e38
"""The largest magnitude of a number: tensors compute in 32 bits, where more is infinite."""
# At the beginning of a part of a path; elsewhere a dollar is a letter like others.
_VARIABLE = re.compile(r"(^|/)\$(\w+|\{)")


def _path_text(value: object) -> object:
    # Path would make the working folder of an empty text, which nobody means
    if value == "" or (isinstance(value, str) and "\0" in value):
        raise ValueError("a path must not be empty or contain NUL")
    return value


def expand_home(path: str) -> str:
    """Return a path with the home folder in place of a leading `~`, as a shell would have put it there.

    Raises:
        ValueError: There is no such home folder, or a part of the path is an environment variable. Those are
            not read: a recipe from elsewhere could name one that holds a secret.
    """
    if _VARIABLE.search(path):
        raise ValueError("environment variables are not read in a path: write it out")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError("there is no such home folder (./~ is a file of that name)")
    return expanded


def _expand_path(path: Path) -> Path:
    return Path(expand_home(str(path)))


def _regex(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return value


def _in_single_precision(value: Any) -> Any:
    if isinstance(value, float) and abs(value) > MAX_FLOAT:
        raise ValueError(f"must be at most {MAX_FLOAT:g} in magnitude, which is what 32 bits can hold")
    return value


Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CountOrZero = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=16, le=16_384, multiple_of=16)]
Text = Annotated[str, Field(min_length=1)]
FilePath = Annotated[Path, Field(strict=False), BeforeValidator(_path_text), AfterValidator(_expand_path)]
WeightsPath = Annotated[Text, AfterValidator(expand_home)]
"""A folder, a file or a hub id."""
Regex = Annotated[str, AfterValidator(_regex)]


class Section(BaseModel):
    """Settings with strict types, no unknown keys, no infinities and no changes after loading.

    The sentence under a field is its help: messages and the reference page are made from it.
    """

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    _check_magnitude = field_validator("*")(_in_single_precision)


AnySection = TypeVar("AnySection", bound=Section)


def read_section(section: type[AnySection], values: Mapping[str, Any]) -> AnySection:
    """Return a section from plain values: strict, but by the rules of JSON, whose lists may stand for tuples.

    Raises:
        pydantic.ValidationError: A value is unknown, missing or wrong.
    """
    return section.model_validate_json(json.dumps(values))
