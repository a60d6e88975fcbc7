"""Look-up by name for the rules, schedules and samplers, with errors that name the nearest spelling."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def lookup(registry: Mapping[str, T], name: str, noun: str) -> T:
    """Return `registry[name]`.

    Raises:
        ValueError: The name is unknown; the message names the nearest one and all of them.
    """
    if name in registry:
        return registry[name]
    raise ValueError(f"unknown {noun} {name!r}{_nearest(name, registry)}; known: {', '.join(registry)}")


def option_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a registered function's options: its keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def check_options(function: Callable[..., Any], options: Iterable[str], owner: str) -> None:
    """Refuse options that `function` does not have.

    Raises:
        ValueError: An option is unknown; the message names `owner` and what it does have.
    """
    known = option_names(function)
    for option in options:
        if option not in known:
            listed = f"it has: {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{owner} has no option {option!r}{_nearest(option, known)}; {listed}")


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
