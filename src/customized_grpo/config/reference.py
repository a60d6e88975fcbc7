"""The schema as documentation: a list of knobs, a JSON Schema and a reference page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from customized_grpo import extensions
from customized_grpo.config.schema import Config
from customized_grpo.fields import MAX_SEED

Schema = Mapping[str, Any]

EXTENDS = (
    "Preset or YAML file, relative to this one, whose values hold where this recipe gives none of its own."
)
"""The sentence of the key `extends`, which is gone when a recipe has become a `Config`."""

ITEM = "N"
"""Stands for the index of a list in the path of a knob, as in rewards.N.weight."""


@dataclass(frozen=True)
class Knob:
    """One field of the config."""

    path: str
    """Dotted path, as in an override; `ITEM` where a list is indexed."""
    type: str
    """What may be written, in words."""
    default: str | None
    """The default as YAML would write it; None for a field that must be given."""
    sentence: str
    """What it does, with its unit."""
    is_section: bool
    """Whether it holds further knobs."""
    owner: str | None = None
    """For a knob that only one kind of section has, that kind, for example "manifest"."""


@cache
def knobs() -> tuple[Knob, ...]:
    """Return every section and field of the config, in the order of the schema."""
    schema = Config.model_json_schema()
    return tuple(_walk(schema, schema["$defs"], "", None))


def generic(path: str) -> str:
    """Return the path of a field as its knob has it: `ITEM` for every index."""
    return ".".join(ITEM if part.isdecimal() else part for part in path.split("."))


def schema_json() -> str:
    """Return the JSON Schema of a recipe, for editors and other tools."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    schema["properties"] = {"extends": {"type": "string", "description": EXTENDS}, **schema["properties"]}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def markdown() -> str:
    """Return the reference page: a table of every setting with its type, default and sentence."""
    lines = ["# Every setting of a recipe", "", f"`extends`: {EXTENDS}"]
    for knob in knobs():
        if "." in knob.path:
            lines.append(_row(knob))
            continue
        lines += ["", f"## {knob.path}", "", knob.sentence, ""]
        if knob.is_section:
            lines += ["| setting | type | default | |", "|---|---|---|---|"]
        else:
            lines.append(f"A {knob.type}; `{knob.default}` when not given.")
    lines += _parts("advantage", "rule")
    lines += _parts("schedule", "schedule")
    return "\n".join(lines) + "\n"


def _parts(section: str, kind: str) -> list[str]:
    """Return a table of the parts that `name` of a section chooses from, each with its options."""
    lines = [
        "",
        f"## {section}.name",
        "",
        f"| name | what | options under `{section}.options` |",
        "|---|---|---|",
    ]
    for name, part in extensions.registry(kind).items():
        what = (part.__doc__ or "").partition("\n")[0]
        options = []
        for option, field in part.model_fields.items():
            default = "required" if field.is_required() else json.dumps(field.default)
            options.append(f"`{option}` ({default}): {field.description}")
        lines.append(f"| `{name}` | {_cell(what)} | {_cell('<br>'.join(options))} |")
    return lines


def _row(knob: Knob) -> str:
    only = f" (only for `kind: {knob.owner}`)" if knob.owner else ""
    default = "required" if knob.default is None else f"`{knob.default}`" if knob.default else ""
    return f"| `{knob.path}` | {knob.type} | {default} | {_cell(knob.sentence)}{only} |"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _walk(section: Schema, definitions: Schema, prefix: str, owner: str | None) -> Iterator[Knob]:
    required = section.get("required", ())
    for name, field in section["properties"].items():
        path = f"{prefix}{name}"
        default = None if name in required else _yaml(field.get("default"))
        sections = _sections(field, definitions)
        described = sections[0] if len(sections) == 1 else field
        sentence = field.get("description") or described.get("description", "")
        yield Knob(path, _words(field), default, sentence, bool(sections), owner)
        inner = f"{path}.{ITEM}." if _is_list(field) else f"{path}."
        if len(sections) == 1:
            yield from _walk(sections[0], definitions, inner, None)
        elif sections:
            yield from _walk_kinds(sections, definitions, inner)


def _walk_kinds(sections: list[Schema], definitions: Schema, prefix: str) -> Iterator[Knob]:
    """Walk the alternatives that a `kind` chooses from; `kind` itself comes once, first."""
    kinds = [section["properties"]["kind"]["const"] for section in sections]
    sentence = sections[0]["properties"]["kind"]["description"]
    yield Knob(f"{prefix}kind", " or ".join(kinds), None, sentence, False)
    for kind, section in zip(kinds, sections, strict=True):
        yield from (
            knob for knob in _walk(section, definitions, prefix, kind) if knob.path != f"{prefix}kind"
        )


def _is_list(field: Schema) -> bool:
    return any(choice.get("type") == "array" for choice in _alternatives(field))


def _alternatives(field: Schema) -> list[Schema]:
    """Return a field and what it may hold instead of one another."""
    return [field, *field.get("anyOf", ()), *field.get("oneOf", ())]


def _sections(field: Schema, definitions: Schema) -> list[Schema]:
    """Return the sections a field may hold, itself, as an alternative or as an item."""
    choices = _alternatives(field)
    for alternative in tuple(choices):
        choices += _alternatives(alternative.get("items", {}))
    return [definitions[choice["$ref"].rpartition("/")[2]] for choice in choices if "$ref" in choice]


def _yaml(value: Any) -> str:
    return "" if isinstance(value, dict) else value if isinstance(value, str) else json.dumps(value)


def _words(field: Schema) -> str:
    """Say in words what a field may hold."""
    if choices := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(dict.fromkeys(_words(choice) for choice in choices))
    if "const" in field or "enum" in field:
        return " or ".join(field.get("enum", [field.get("const")]))
    if "$ref" in field:
        return "section"
    if field["type"] == "array":
        return f"list of {_words(field['items'])}"
    bounds = [
        # a bound of 64 bits tells a reader nothing
        f"{sign} {field[key]:g}"
        for key, sign in _BOUNDS.items()
        if abs(field.get(key, MAX_SEED)) < MAX_SEED
    ]
    return " ".join([_WORDS[field["type"]], " and ".join(bounds)]).strip()


_WORDS = {
    "boolean": "true or false", "integer": "integer", "null": "null", "number": "number", "object": "mapping",
    "string": "text",
}  # fmt: skip
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
