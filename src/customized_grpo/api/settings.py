"""Settings given in Python as the overrides that recipes take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

from customized_grpo.errors import UserError


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as `section.key=value`.

    Args:
        settings: Values by dotted key ({"train.iterations": 3}) or by section ({"train": {"iterations": 3}}).
            A list, such as `rewards`, replaces the recipe's.

    Raises:
        UserError: A value is of a type that no recipe can hold.
    """
    return [f"{key}={_text(key, value)}" for key, value in _leaves("", settings)]


def _leaves(prefix: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        key = f"{prefix}{name}"
        # an empty mapping has no leaves, and is itself the value
        if isinstance(value, Mapping) and value:
            yield from _leaves(f"{key}.", value)
        else:
            yield key, value


def _text(key: str, value: Any) -> str:
    """Return a value as JSON, which is YAML on one line."""
    if isinstance(value, PathLike):
        value = str(value)
    try:
        # json would write NaN as a word, which YAML reads as text
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{key}: {type(value).__name__} is no value of a recipe: {error}",
            hint="Give text, a number, true or false, None, a list, or a mapping of these.",
        ) from error
