"""Values of overrides: what was typed, where the field holds text; YAML elsewhere.

A shell has its own quotes and comments, so that `run.dir=runs/dog #2` arrives as it was meant: read as YAML
it would be `runs/dog`, another run. So a field of text takes the value letter by letter, and a `#` never
begins a comment. Quotes around a whole value are YAML's, as in a recipe, and are taken off: who copies
`dir: "my run"` from one means my run. A text that has such quotes itself is quoted once more.
"""

from __future__ import annotations

import re
from typing import Any

from customized_grpo.config.checks import Mistake
from customized_grpo.config.reference import ITEM, knobs
from customized_grpo.config.yaml_text import read_scalar, read_yaml

_COMMENT = re.compile(r"(^|\s)#")
_NULL = ("", "null", "~")


def read_value(path: tuple[str, ...], text: str) -> tuple[Any, list[Mistake]]:
    """Return the value of an override, and what is wrong with its text.

    Args:
        path: The field, which may not exist.
        text: What stands after the equals sign.
    """
    kinds = _kinds(path)
    # A field that takes text or a list: brackets mean the list.
    may_be_list = "list" in kinds and text.startswith("[")
    if "text" in kinds and not may_be_list:
        if text in _NULL and "null" in kinds:
            return None, []
        return _unquoted(text)
    has_structure = "section" in kinds or "list" in kinds or text.lstrip().startswith(("[", "{", '"', "'"))
    if not has_structure:
        return read_scalar(text.strip() if kinds else text)
    if _COMMENT.search(text):
        return None, [Mistake("text", "a # that follows a blank would begin a comment; leave it out")]
    return read_yaml(text)


def _kinds(path: tuple[str, ...]) -> set[str]:
    """Return the words for what a field may hold, without bounds; none for a field that the schema lacks."""
    for knob in knobs():
        parts = knob.path.split(".")
        is_same = [part in (ITEM, key) for part, key in zip(parts, path, strict=False)]
        if len(parts) == len(path) and all(is_same):
            # the first word of each kind; bounds follow it
            return {kind.split()[0] for kind in knob.type.split(" or ")}
    return set()


def _unquoted(text: str) -> tuple[str, list[Mistake]]:
    """Return text as it is, or without the quotes around all of it."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        value, mistakes = read_yaml(text)
        if isinstance(value, str) and not mistakes:
            return value, []
    value, mistakes = read_scalar(text, is_text=True)
    return str(value), mistakes
