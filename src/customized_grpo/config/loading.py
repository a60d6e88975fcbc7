"""From a recipe and overrides to a checked `Config`, and back to text.

Layers, later ones winning: the schema's defaults, the recipe that is extended, the recipe (a preset or a YAML
file), the overrides in the order given. Everything that is wrong is reported in one message, before anything
heavy is imported.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from customized_grpo.config.checks import Mistake, cross_field_mistakes
from customized_grpo.config.clear_text import secret_mistakes
from customized_grpo.config.mistakes import explain, listed
from customized_grpo.config.overrides import read_value
from customized_grpo.config.part_options import (
    CHOICES,
    forget_options_of_old_choice,
    forget_other_form,
    gather_options,
)
from customized_grpo.config.reference import ITEM, generic
from customized_grpo.config.schema import Config
from customized_grpo.config.yaml_text import MAX_LENGTH, read_yaml, write_yaml
from customized_grpo.errors import UserError, nearest
from customized_grpo.fields import Section, expand_home

EXTENDS = "extends"
"""Key of a recipe that names the recipe it starts from."""

NOT_IN_HASH = (
    "run.dir",
    "run.overwrite",
    "run.process_timeout_s",
    "run.deterministic",
    "trackers",
    f"rewards.{ITEM}.executor",
)
"""Fields that change where results go and where they are computed, but no number in them."""


def preset_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(
        file.name.removesuffix(".yaml") for file in _presets().iterdir() if file.name.endswith(".yaml")
    )


def load_config(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Read a recipe, apply overrides and check everything.

    Args:
        recipe: Name of a preset, or path of a YAML file.
        overrides: Each `section.key=value`, see `overrides.read_value`. An item of `rewards` is addressed by
            its index or name, as in `rewards.clip_t.weight=2`. Choosing another `advantage.name`,
            `schedule.name` or `data.kind` drops those of the recipe's options that the new choice lacks.

    Raises:
        UserError: Lists every mistake with its dotted path and what to write instead.
    """
    name, data, mistakes = _read_layers(recipe)
    settings, bad_overrides = parse_overrides(overrides)
    mistakes += bad_overrides + apply_overrides(data, settings)
    # before options are gathered, so that a mistake names the place where it was written
    secrets = secret_mistakes(data)
    for section in CHOICES:
        mistakes += gather_options(data, section)
    run = data.setdefault("run", {})
    if isinstance(run, dict):
        # By the name of the recipe itself, not of what it extends.
        run.setdefault("dir", f"runs/{name}")
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        field_mistakes = explain(error.errors(include_url=False))
        broken = frozenset(mistake.path for mistake in field_mistakes)
        # A place that is wrong anyway is named once.
        mistakes += [mistake for mistake in secrets if mistake.path not in broken]
        raise _refusal(
            recipe, [*mistakes, *field_mistakes, *cross_field_mistakes(_without_broken(data, broken), broken)]
        ) from None
    if mistakes or secrets:
        raise _refusal(recipe, [*mistakes, *secrets])
    return config


def dump_config(config: Config) -> str:
    """Return the config as YAML, every value spelt out; loading it gives an equal config."""
    return write_yaml(config.model_dump(mode="json"))


def config_hash(config: Config) -> str:
    """Return the SHA-256, in hex, of every value that can change a number of the run (see `NOT_IN_HASH`)."""
    ignored = tuple(f"{path}." for path in NOT_IN_HASH)
    values = {
        path: value for path, value in leaves(config).items() if not f"{generic(path)}.".startswith(ignored)
    }
    # Sorted, because the order of keys is no difference.
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()


def diff_configs(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """Return (dotted path, old value, new value) of every difference; None stands for an absent field."""
    before = leaves(old)
    after = leaves(new)
    differences = []
    # a set that keeps the order: the old paths, then those that are new
    for path in dict.fromkeys((*before, *after)):
        values = before.get(path), after.get(path)
        # a choice without options has an empty mapping where the other has its options, listed one by one
        if values[0] != values[1] and {} not in values:
            differences.append((path, *values))
    return differences


def preset_summaries() -> dict[str, str]:
    """Return the recipes that come with the package by name, each with the sentence it begins with."""
    return {name: _summary(_read_recipe(name)[1]) for name in preset_names()}


def _summary(text: str) -> str:
    # a preset begins with comments, whose first sentence says what it is for
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    comment = " ".join(line.removeprefix("#").strip() for line in lines)
    return comment.partition(". ")[0].rstrip(".") + "."


def _read_layers(recipe: str, inside: tuple[str, ...] = ()) -> tuple[str, dict[str, Any], list[Mistake]]:
    """Read a recipe on top of what it extends.

    Args:
        recipe: Name of a preset, or path of a YAML file.
        inside: Recipes that extend this one, the outermost first.

    Returns:
        The recipe's short name, its data without `extends`, and what is wrong with its text.
    """
    name, text = _read_recipe(recipe)
    data, mistakes = read_yaml(text)
    if not isinstance(data, dict):
        reasons = mistakes or [
            Mistake("text", "a recipe is a YAML mapping of sections such as model: and train:")
        ]
        raise _refusal(recipe, reasons)
    if EXTENDS not in data:
        return name, data, mistakes
    # taken out, because it is no setting: the schema does not know it
    base = data.pop(EXTENDS)
    # its value is refused already, and may not be what was meant
    if any(mistake.path == EXTENDS for mistake in mistakes):
        return name, data, mistakes
    if not isinstance(base, str) or not base:
        mistake = Mistake(EXTENDS, "write one preset, or the path of one YAML file")
        return name, data, [*mistakes, mistake]
    # a preset has no folder that the path could be relative to
    if _is_file(base) and recipe not in preset_names():
        try:
            base = str(Path(recipe).parent / expand_home(base))
        except ValueError as error:
            return name, data, [*mistakes, Mistake(EXTENDS, f"{base}: {error}")]
    chain = (*inside, recipe)
    # by identity: a circle may spell one file in two ways
    if _identity(base) in map(_identity, chain):
        raise UserError(f"extends goes in a circle: {' -> '.join((*chain, base))}", "Take one of them out.")
    _, below, wrong_below = _read_layers(base, chain)
    if wrong_below:
        raise _refusal(base, wrong_below)
    _lay_over(below, data)
    return name, below, mistakes


def _lay_over(below: dict[str, Any], above: Mapping[str, Any], path: tuple[str, ...] = ()) -> None:
    """Write a recipe's values over those of the one it extends, key by key; a list replaces a list."""
    for key, value in above.items():
        # in a pass of its own: the options of a new choice may stand before it
        earlier = below if not path else {path[0]: below}
        forget_options_of_old_choice(earlier, (*path, key), value)
        if len(path) < 2:  # deeper down `below` is no section
            forget_other_form(earlier, (*path, key), value)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _lay_over(below[key], value, (*path, key))
        else:
            below[key] = value


def _identity(recipe: str) -> str | Path:
    return recipe if recipe in preset_names() else Path(recipe).resolve()


def _is_file(recipe: str) -> bool:
    return "/" in recipe or recipe.endswith((".yaml", ".yml"))


def _presets() -> Traversable:
    return resources.files("customized_grpo.config") / "presets"


def _read_recipe(recipe: str) -> tuple[str, str]:
    """Return the recipe's short name and its text."""
    if recipe in preset_names():
        return recipe, (_presets() / f"{recipe}.yaml").read_text(encoding="utf-8")
    path = Path(recipe)
    try:
        if not path.is_file():
            raise _not_found(recipe)
        with path.open("rb") as file:
            # one byte more than allowed: a wrong file of gigabytes is not read to its end
            raw = file.read(MAX_LENGTH + 1)
        if len(raw) > MAX_LENGTH:
            raise UserError(f"{recipe} is longer than {MAX_LENGTH:,} bytes, too long for a recipe")
        # editors on Windows write a BOM
        return path.stem, raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{recipe} is not UTF-8 text (byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{recipe} cannot be read: {error}") from None


def _not_found(recipe: str) -> UserError:
    presets = preset_names()
    if _is_file(recipe):
        return UserError(f"there is no recipe file {recipe}", f"Presets: {', '.join(presets)}.")
    close = nearest(recipe, presets)
    return UserError(
        f"there is no preset {recipe!r}{'' if close is None else f'; did you mean {close}?'}",
        f"Presets: {', '.join(presets)}. A recipe of your own is given as the path of a YAML file.",
    )


def _refusal(recipe: str, mistakes: Sequence[Mistake]) -> UserError:
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    return UserError(f"{count} in the recipe {recipe} or its overrides:\n{listed(mistakes)}")


def parse_overrides(overrides: Sequence[str]) -> tuple[list[tuple[tuple[str, ...], Any]], list[Mistake]]:
    """Return (path, value) of every `section.key=value`, and what is wrong with those that are not such."""
    settings: list[tuple[tuple[str, ...], Any]] = []
    mistakes = []
    for override in overrides:
        key, equals, text = override.partition("=")
        path = tuple(key.split("."))
        if not equals or not all(path):
            mistakes.append(Mistake(override, "an override is written section.key=value"))
            continue
        value, wrong = read_value(path, text)
        mistakes += [Mistake(key, mistake.text) for mistake in wrong]
        if not wrong:
            settings.append((path, value))
    return settings, mistakes


def apply_overrides(data: dict[str, Any], settings: Sequence[tuple[tuple[str, ...], Any]]) -> list[Mistake]:
    """Write the overrides into `data`; return those whose place does not exist."""
    for path, value in settings:
        # in a pass of its own: an option that is set here must survive a choice that is set after it
        forget_options_of_old_choice(data, path, value)
    mistakes = []
    for path, value in settings:
        forget_other_form(data, path, value)
        if (problem := _put(data, path, value)) is not None:
            mistakes.append(Mistake(".".join(path), problem))
    return mistakes


def _put(data: dict[str, Any], path: tuple[str, ...], value: Any) -> str | None:
    """Set the value at a path, making sections on the way; return what is wrong with the path, or None."""
    place: Any = data
    for depth, key in enumerate(path):
        slot: str | int | None = key
        if isinstance(place, list):
            slot = _index(place, key)
        elif not isinstance(place, dict):
            return f"{'.'.join(path[:depth])} is a value and has no keys"
        # a section that is absent or null is made when something in it is set
        elif depth < len(path) - 1 and place.get(key) is None:
            place[key] = {}
        if slot is None:
            names = ", ".join(str(item.get("name")) for item in place if isinstance(item, dict))
            return f"no single item {key!r}; use an index below {len(place)} or one of {names}"
        if depth == len(path) - 1:
            place[slot] = value
        else:
            place = place[slot]
    return None


def _index(items: list[Any], key: str) -> int | None:
    if key.isdecimal():
        # int() refuses thousands of digits, by an error of its own
        return int(key) if len(key) < 9 and int(key) < len(items) else None
    named = [index for index, item in enumerate(items) if isinstance(item, dict) and item.get("name") == key]
    # of two with one name, only an index says which is meant
    return named[0] if len(named) == 1 else None


def _without_broken(data: Mapping[str, Any], broken: frozenset[str]) -> dict[str, Any]:
    """Return what is valid of `data`, with defaults elsewhere, for the rules that can still be checked.

    A section that must be given, or may be null, is left out where something is wrong in it.
    """
    values: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        may_be_null = not field.is_required() and field.default is None and field.default_factory is None
        if may_be_null and data.get(name) is None:
            values[name] = None
            continue
        if field.is_required() or may_be_null:
            if name in data and not any(f"{path}.".startswith(f"{name}.") for path in broken):
                section_type: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
                with suppress(ValidationError):  # broken, under another path
                    values[name] = section_type.dump_python(section_type.validate_python(data[name]))
            continue
        default = field.get_default(call_default_factory=True)
        if not isinstance(default, Section):
            continue
        section = {} if name in broken else copy.deepcopy(data.get(name, {}))
        for path in broken:
            _remove(section, path.split(".")[1:] if path.startswith(f"{name}.") else [])
        try:
            values[name] = type(default).model_validate(section).model_dump()
        except ValidationError:  # without its broken fields it is another choice, whose options differ
            values[name] = default.model_dump()
    return values


def _remove(section: dict[str, Any], path: Sequence[str]) -> None:
    """Remove a broken field, or all of the list that it is in."""
    for key in path:
        inner = section.get(key)
        if key == path[-1] or not isinstance(inner, dict):
            section.pop(key, None)
            return
        section = inner


def leaves(config: Config) -> dict[str, Any]:
    """Return the config as {dotted path: plain value}; empty lists and mappings are values."""
    leaves: dict[str, Any] = {}
    pending: list[tuple[str, Any]] = [("", config.model_dump(mode="json"))]
    while pending:
        path, value = pending.pop(0)
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        inner = [(f"{path}.{key}" if path else str(key), item) for key, item in items]
        # Depth first, so that the leaves come in the order of the schema.
        pending = inner + pending
        if not inner:
            leaves[path] = value
    return leaves
