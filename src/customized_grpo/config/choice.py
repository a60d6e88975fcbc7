"""A part chosen by name, with options that only that part has."""

from __future__ import annotations

from collections.abc import Mapping
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
        return complete_options(cls.KIND, info.data["name"], options)

    def build(self) -> Any:
        """Return the part with its options."""
        return read_section(load_part(self.KIND, self.name), self.options)


def load_part(kind: str, name: str) -> Any:
    """Return a part by name, as `extensions.load`, with the error that a validator raises.

    Raises:
        PydanticCustomError: The message and hint of the `UserError`.
    """
    try:
        return extensions.load(kind, name)
    except UserError as error:
        text = str(error).replace("\n", "\n    ")
        # the text is an argument, because pydantic reads braces in a template
        raise PydanticCustomError("part", "{text}", {"text": text}) from error


def options_class(kind: str, name: str) -> type[Section]:
    """Return the class whose fields are a part's options: the part itself, or what it names as `options`.

    Raises:
        UserError: See `extensions.load`.
    """
    part = extensions.load(kind, name)
    options: type[Section] = part if extensions.KINDS[kind].is_class else part.options
    return options


def complete_options(kind: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part's options checked and with defaults filled in, as plain values.

    Args:
        kind: Key of `extensions.KINDS`.
        name: Of the part, which exists.
        options: What the recipe gives.

    Raises:
        pydantic.ValidationError: An option is unknown, missing or wrong; its place is that of the option.
    """
    section = options_class(kind, name)
    errors: list[InitErrorDetails] = []
    for key, value in options.items():
        if key not in section.model_fields:
            text = _unknown_option(kind, name, key, list(section.model_fields))
            reason = PydanticCustomError("part", "{text}", {"text": text})
            errors.append(InitErrorDetails(type=reason, loc=(key,), input=value))
    if errors:
        raise ValidationError.from_exception_data(name, errors)
    return read_section(section, options).model_dump(mode="json")


def _unknown_option(kind: str, name: str, key: str, known: list[str]) -> str:
    owners = [other for other in extensions.registry(kind) if key in options_class(kind, other).model_fields]
    if owners:
        return f"not an option of {name}, only of {', '.join(owners)}"
    close = nearest(key, known)
    if close is not None:
        return f"{name} has no such option; did you mean {close}?"
    if known:
        return f"{name} has no such option; it has {', '.join(known)}"
    return f"{name} has no options"
