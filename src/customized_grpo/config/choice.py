"""A part chosen by name, with options that only that part has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from pydantic import Field, JsonValue, ValidationError, ValidationInfo, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from customized_grpo import extensions
from customized_grpo.errors import UserError, nearest
from customized_grpo.fields import Section, Text, read_section


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
        return complete_options(name, part, options, cls.model_fields, extensions.registry(cls.KIND))

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
        return read_section(load_part(self.KIND, self.name), self.options)


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


def complete_options(
    name: str,
    section: type[Section],
    options: Mapping[str, Any],
    neighbours: Collection[str],
    others: Mapping[str, type[Section]],
) -> dict[str, Any]:
    """Return options checked and with defaults filled in, as plain values.

    Args:
        name: Of the part.
        section: Its options.
        options: What the recipe gives.
        neighbours: Fields beside the options, of which one may be misspelt.
        others: Options of the package's parts of this kind, by name.

    Raises:
        pydantic.ValidationError: An option is unknown, missing or wrong; its place is that of the option.
    """
    errors: list[InitErrorDetails] = []
    for key, value in options.items():
        if key not in section.model_fields:
            text = _unknown_option(name, key, list(section.model_fields), neighbours, others)
            reason = PydanticCustomError("part", "{text}", {"text": text})
            errors.append(InitErrorDetails(type=reason, loc=(key,), input=value))
    if errors:
        raise ValidationError.from_exception_data(name, errors)
    return read_section(section, options).model_dump(mode="json")


def _unknown_option(
    name: str,
    key: str,
    known: list[str],
    neighbours: Collection[str],
    others: Mapping[str, type[Section]],
) -> str:
    owners = [other for other, section in others.items() if key in section.model_fields]
    if owners:
        return f"not an option of {name}, only of {', '.join(owners)}"
    close = nearest(key, [*known, *neighbours])
    if close is not None:
        return f"{name} has no such option; did you mean {close}?"
    if known:
        return f"{name} has no such option; it has {', '.join(known)}"
    return f"{name} has no options"
