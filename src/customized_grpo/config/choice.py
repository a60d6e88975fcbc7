"""A part chosen by name, with options that only that part has."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import Field, JsonValue, ValidationError, ValidationInfo, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from customized_grpo import extensions
from customized_grpo.errors import UserError, nearest
from customized_grpo.fields import Section, Text

Part = TypeVar("Part", bound=Section)


class Choice(Section):
    """A section whose `name` chooses a part, and whose `options` are that part's own settings.

    Options are checked against the fields of the part's class and filled with its defaults.
    """

    KIND: ClassVar[str]
    """Key of `extensions.KINDS`."""

    name: Text
    options: dict[str, JsonValue] = Field(default={}, validate_default=True)
    """Settings that only the chosen part has; they may also be written beside the name."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        load_part(cls.KIND, name)
        return name

    @field_validator("options")
    @classmethod
    def _check_options(cls, options: dict[str, JsonValue], info: ValidationInfo) -> dict[str, Any]:
        if "name" not in info.data:  # the name is wrong, and that is said already
            return options
        name = info.data["name"]
        part = load_part(cls.KIND, name)
        neighbours = set(cls.model_fields) - {"name", "options"}
        # Both raise pydantic's own error, whose places pydantic puts below `options`.
        refuse_unknown_options(name, part, options, neighbours, extensions.registry(cls.KIND))
        checked: dict[str, Any] = read_part(part, options).model_dump(mode="json")
        return checked

    @classmethod
    def fields_for(cls, name: Any) -> set[str]:
        """Return the fields of this section, and the options of the part of that name if there is one."""
        fields = set(cls.model_fields) - {"options"}
        try:
            return fields | set(extensions.load(cls.KIND, str(name)).model_fields)
        except UserError:  # an unknown name is refused when the section is checked
            return fields

    def build(self) -> Any:
        """Return the part with its options."""
        return read_part(load_part(self.KIND, self.name), self.options)


def gather_options(section: Any, fields: Collection[str]) -> Any:
    """Return a section as a recipe writes it, with the keys that are none of its fields moved to `options`.

    So `advantage.gamma=.4` is short for `advantage.options.gamma=.4`, without a table of the options that
    there are. What is not a mapping comes back as it is, to be refused later.

    Args:
        section: The section, as read from YAML.
        fields: The fields that the section has for every choice.
    """
    if not isinstance(section, dict):
        return section
    options = section.get("options", {})
    beside = {key: value for key, value in section.items() if key not in fields}
    if not beside or not isinstance(options, dict):
        return section
    own = {key: value for key, value in section.items() if key in fields}
    return {**own, "options": {**options, **beside}}


def load_part(kind: str, name: str) -> Any:
    """Return a part by name, as `extensions.load`, with the error that a validator raises.

    Raises:
        PydanticCustomError: The message and hint of the `UserError`.
    """
    try:
        return extensions.load(kind, name)
    except UserError as error:
        text = str(error).replace("\n", "\n    ")
        raise PydanticCustomError("part", "{text}", {"text": text}) from error


def read_part(part: type[Part], options: Mapping[str, Any]) -> Part:
    """Return a part with these options: strict, but by the rules of JSON, whose lists may stand for tuples.

    Raises:
        pydantic.ValidationError: An option is unknown, missing or wrong.
    """
    return part.model_validate_json(json.dumps(options))


def refuse_unknown_options(
    name: str,
    part: type[Section],
    options: Mapping[str, Any],
    neighbours: Collection[str],
    others: Mapping[str, type[Section]],
) -> None:
    """Refuse options that a part does not have, and say which part has them or the nearest name there is.

    Args:
        name: Of the part.
        part: Its class.
        options: What the recipe gives.
        neighbours: Fields of the section, of which one may be misspelt.
        others: The package's parts of this kind, by name.

    Raises:
        pydantic.ValidationError: One error for each unknown option.
    """
    known = list(part.model_fields)
    errors: list[InitErrorDetails] = []
    for key, value in options.items():
        if key in known:
            continue
        close = nearest(key, [*known, *neighbours])
        owners = [other for other, owner in others.items() if key in owner.model_fields]
        if owners:
            text = f"not an option of {name}, only of {', '.join(owners)}"
        elif close is not None:
            text = f"{name} has no such option; did you mean {close}?"
        elif known:
            text = f"{name} has no such option; it has {', '.join(known)}"
        else:
            text = f"{name} has no options"
        errors.append(
            InitErrorDetails(
                type=PydanticCustomError("part", "{text}", {"text": text}), loc=(key,), input=value
            )
        )
    if errors:
        raise ValidationError.from_exception_data(name, errors)
