"""From what pydantic found to sentences that say what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic_core import ErrorDetails

from customized_grpo.config.checks import Mistake
from customized_grpo.config.clear_text import may_hold_a_secret, secret_mistakes
from customized_grpo.config.reference import Knob, generic, knobs
from customized_grpo.errors import nearest

_WANTED = {
    "bool_type": "write true or false",
    "dict_type": "write a mapping of keys to values",
    "float_type": "write a number",
    "int_from_float": "write a whole number",
    "int_type": "write a whole number",
    "model_attributes_type": "write a section of keys and values",
    "model_type": "write a section of keys and values",
    "path_type": "write a path",
    "string_pattern_mismatch": "not one of those that follow",
    "string_type": "write text (in quotes if it looks like a number)",
    "tuple_type": "write a list",
}
_BOUNDS = {"greater_than": ("gt", "above"), "greater_than_equal": ("ge", "at least"),
           "less_than": ("lt", "below"), "less_than_equal": ("le", "at most"),
           "multiple_of": ("multiple_of", "a multiple of")}  # fmt: skip


def explain(errors: Iterable[ErrorDetails]) -> list[Mistake]:
    """Return one mistake per pydantic error, in the same order, without those of rules across fields."""
    return [Mistake(".".join(path), _text(path, error)) for error in errors if (path := _path(error))]


def _path(error: ErrorDetails) -> tuple[str, ...]:
    """Return the place of an error as the parts of a dotted path, without pydantic's tags of alternatives."""
    parts = tuple(str(part) for part in error["loc"])
    # pydantic says executor.http.url, a recipe executor.url
    for place in range(1, len(parts)):
        if parts[place] in _kinds(parts[:place]):
            parts = (*parts[:place], *parts[place + 1 :])
            break
    if error["type"].startswith("union_tag"):
        return (*parts, "kind")
    return parts


def _kinds(path: tuple[str, ...]) -> list[str]:
    """Return the kinds a section may be of; none for one that has no `kind`."""
    knob = _knob((*path, "kind"))
    return [] if knob is None else knob.type.split(" or ")


def _knob(path: tuple[str, ...]) -> Knob | None:
    name = generic(".".join(path))
    return next((knob for knob in knobs() if knob.path == name), None)


def _text(path: tuple[str, ...], error: ErrorDetails) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "missing":
        return _about(path, "must be given")
    if kind == "union_tag_not_found":
        return _about(path, f"must be given: {' or '.join(sorted(_kinds(path[:-1])))}")
    if kind in ("literal_error", "union_tag_invalid"):
        return _unknown_name(path, error)
    if kind == "part":  # what a part that is chosen by name says of itself
        return error["msg"]
    got = f"got {_shown(path, error['input'])}"
    if kind in _BOUNDS:
        key, word = _BOUNDS[kind]
        limit = error["ctx"][key]
        number = str(limit) if isinstance(limit, int) else f"{limit:g}"
        return _about(path, f"{got}, must be {word} {number}")
    if kind in ("too_short", "string_too_short"):
        return _about(path, "must not be empty")
    if kind == "value_error":
        return _about(path, f"{got}, {error['ctx']['error']}")
    return _about(path, f"{got}; {_WANTED.get(kind, error['msg'])}")


def _about(path: tuple[str, ...], text: str) -> str:
    """Append the knob's own sentence: it says what the value means."""
    knob = _knob(path)
    return text if knob is None else f"{text}\n    {knob.sentence}"


def _unknown_key(path: tuple[str, ...]) -> str:
    *parents, key = path
    section = generic(".".join(parents))
    owners = [knob.owner for knob in knobs() if knob.path == f"{section}.{key}" and knob.owner]
    if owners:
        return f"there is no such key here; {'.'.join(parents)} of kind {' or '.join(owners)} alone has it"
    siblings = [knob.path.rpartition(".")[2] for knob in knobs() if knob.path.rpartition(".")[0] == section]
    if (close := nearest(key, siblings)) is not None:
        return f"there is no such key; did you mean {'.'.join((*parents, close))}?"
    # The right key in the wrong section: it is told by its last part.
    elsewhere = [knob.path for knob in knobs() if knob.path.rpartition(".")[2] == key]
    if elsewhere:
        return f"there is no such key; did you mean {' or '.join(elsewhere)}?"
    return f"there is no such key; {'.'.join(parents) or 'a recipe'} has {', '.join(dict.fromkeys(siblings))}"


def _unknown_name(path: tuple[str, ...], error: ErrorDetails) -> str:
    value = error["input"]
    context: dict[str, Any] = error["ctx"]
    if error["type"] == "union_tag_invalid":
        value, known = context["tag"], re.findall(r"'([^']*)'", context["expected_tags"])
    else:
        known = re.findall(r"'([^']*)'", context["expected"])
    close = nearest(value, known) if isinstance(value, str) else None
    # With a single known name, the list that follows says it already.
    suggestion = "" if close is None or len(known) == 1 else f" (did you mean {close}?)"
    return f"{_shown(path, value)} is not known{suggestion}; known: {', '.join(known)}"


def _shown(path: tuple[str, ...], value: object) -> str:
    if any(map(may_hold_a_secret, path)) or secret_mistakes(value):
        return "[hidden]"
    text = re.sub(r"//[^/\s]*@", "//[redacted]@", repr(value))  # credentials in a URL
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(mistakes: Iterable[Mistake]) -> str:
    """Return the mistakes as an indented list, each once."""
    return "\n".join(_unique(f"  {mistake.path}: {mistake.text}" for mistake in mistakes))


def _unique(lines: Iterable[str]) -> Iterator[str]:
    yield from dict.fromkeys(lines)
