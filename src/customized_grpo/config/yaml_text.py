"""YAML 1.2 as a recipe may use it: plain data, and nothing that hides or multiplies it.

Read node by node instead of through a constructor, so that every duplicate key, tag and alias is reported at
once with its line, and so that no input can build an object or grow beyond its own text.
"""

from __future__ import annotations

import copy
import functools
import io
import math
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    ScalarEvent,
)
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from customized_grpo.config.checks import Mistake

MAX_LENGTH = 1_000_000
MAX_DEPTH = 20

_TAG = "tag:yaml.org,2002:"


def read_yaml(text: str) -> tuple[Any, list[Mistake]]:
    """Parse one YAML document into mappings, lists, strings, numbers, booleans and None.

    Where a key is repeated the first value is kept, so that the rest of the recipe can still be checked.

    Returns:
        The data (None when the text cannot be parsed at all) and what is wrong with the text.
    """
    if len(text) > MAX_LENGTH:
        return None, [Mistake("text", f"longer than {MAX_LENGTH:,} characters")]
    data, mistakes = _read(text)
    return copy.deepcopy(data), list(mistakes)  # the caller may change them


@functools.lru_cache(maxsize=32)  # a comparison reads one recipe for every arm
def _read(text: str) -> tuple[Any, list[Mistake]]:
    # pure: the parser in C knows YAML 1.1 only, in which `no` is false
    yaml = YAML(typ="safe", pure=True)
    mistakes: list[Mistake] = []
    try:
        _refuse_unreadable(yaml, text, mistakes)
        if mistakes:
            return None, mistakes
        node = yaml.compose(io.StringIO(text))
    except MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}"
        return None, [Mistake(where or "text", f"not valid YAML: {error.problem or error.context}")]
    except (YAMLError, ValueError) as error:
        return None, [Mistake("text", f"not valid YAML: {str(error).splitlines()[0]}")]
    return (None if node is None else _data(yaml, node, (), mistakes)), mistakes


def read_scalar(text: str, *, is_text: bool = False) -> tuple[Any, list[Mistake]]:
    """Return text as the plain scalar it would be in YAML, without reading it as YAML: it may hold anything.

    Args:
        text: The value.
        is_text: Whether it is text even where it looks like a number.

    Returns:
        A string, number, boolean or None, and what is wrong with it.
    """
    yaml = YAML(typ="safe", pure=True)
    mistakes: list[Mistake] = []
    tag = f"{_TAG}str" if is_text else yaml.resolver.resolve(ScalarNode, text.strip(), (True, False))
    is_string = tag == f"{_TAG}str"
    return _scalar(yaml, ScalarNode(tag, text if is_string else text.strip()), (), mistakes), mistakes


def write_yaml(data: Any) -> str:
    """Return block-style YAML that `read_yaml` reads back as equal data."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    # keys stay in the order of the schema
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.allow_unicode = False  # written raw, some line separators would not come back
    # No line is folded, so that a value can be searched for.
    yaml.width = 4096
    stream = io.StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()


def _refuse_unreadable(yaml: YAML, text: str, mistakes: list[Mistake]) -> None:
    """Collect aliases, tags, further documents and bottomless nesting from the parser's events.

    Events come before anything is expanded or built, so a small text cannot become large here.
    """
    depth = documents = 0
    for event in yaml.parse(io.StringIO(text)):
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                mistakes.append(Mistake(line, "a second document; a recipe is one"))
            if event.version not in (None, (1, 2)):
                mistakes.append(Mistake(line, "written for another version of YAML; recipes are YAML 1.2"))
        elif isinstance(event, AliasEvent):
            mistakes.append(Mistake(line, f"the alias *{event.anchor} is not read; write the value out"))
        elif isinstance(event, (ScalarEvent, CollectionStartEvent)) and event.tag is not None:
            mistakes.append(Mistake(line, f"the tag {event.tag} is not read; write a plain value"))
        if isinstance(event, CollectionStartEvent):
            depth += 1
            # the composer calls itself for each level, so Python's own limit would be met first
            if depth > MAX_DEPTH:
                mistakes.append(Mistake(line, f"nested more than {MAX_DEPTH} deep"))
                return
        elif isinstance(event, CollectionEndEvent):
            depth -= 1


def _data(yaml: YAML, node: Node, path: tuple[str, ...], mistakes: list[Mistake]) -> Any:
    if isinstance(node, MappingNode):
        return _mapping(yaml, node, path, mistakes)
    if isinstance(node, SequenceNode):
        return [_data(yaml, item, (*path, str(index)), mistakes) for index, item in enumerate(node.value)]
    assert isinstance(node, ScalarNode)
    return _scalar(yaml, node, path, mistakes)


def _mapping(yaml: YAML, node: MappingNode, path: tuple[str, ...], mistakes: list[Mistake]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            mistakes.append(Mistake(f"line {line}", "a key must be a plain word"))
            continue
        key = _characters(key_node.value, path, mistakes)
        value = _data(yaml, value_node, (*path, key), mistakes)
        # Most parsers would let the last one win without a word.
        if key in result:
            mistakes.append(Mistake(".".join((*path, key)), f"given twice (again in line {line})"))
        else:
            result[key] = value
    return result


def _scalar(yaml: YAML, node: ScalarNode, path: tuple[str, ...], mistakes: list[Mistake]) -> Any:
    if node.tag not in (f"{_TAG}null", f"{_TAG}bool", f"{_TAG}int", f"{_TAG}float"):
        return _characters(node.value, path, mistakes)  # strings, and dates, which no field takes
    try:
        value = yaml.constructor.construct_object(node)
    except ValueError:
        value = math.nan  # for example an integer of ten thousand digits
    if isinstance(value, float) and not math.isfinite(value):
        mistakes.append(Mistake(".".join(path) or "text", "not a finite number"))
        return None
    return value


def _characters(text: str, path: tuple[str, ...], mistakes: list[Mistake]) -> str:
    """Return text with both halves of a surrogate pair joined: JSON writes an emoji as two of them.

    NUL is refused everywhere, because no file name, address or prompt may hold it.
    """
    if "\0" in text:
        mistakes.append(Mistake(".".join(path) or "text", "the character NUL; leave it out"))
        text = text.replace("\0", "?")
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        problem = "half a character: not text in UTF-8, or a lone surrogate"
        mistakes.append(Mistake(".".join(path) or "text", problem))
        return text.encode("ascii", "replace").decode()
