"""Options of registered rewards: declared as a model each, checked before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from customized_grpo.errors import UserError, nearest
from customized_grpo.fields import Section


class RewardOptions(Section):
    """Base class of the options of a registered reward; a reward without options uses this class itself.

    A subclass declares its fields like a section of the config: strict types, a default where there is one,
    and a sentence under each.
    """


Options = TypeVar("Options", bound=RewardOptions)


def read_options(reward: str, model: type[Options], values: Mapping[str, Any]) -> Options:
    """Return the options as the reward's own model.

    Args:
        reward: Name of the reward, for the message.
        model: Its options.
        values: What the recipe says.

    Raises:
        UserError: Lists every unknown name with the nearest known one, every missing one and every wrong
            value. What was given is not repeated: it may hold a secret, such as a password in an address.
    """
    try:
        # Strict as the config is, but by the rules of JSON: its lists may stand for tuples.
        return model.model_validate_json(json.dumps(dict(values)))
    except ValidationError as error:
        lines = [_line(model, item["type"], item["loc"], item["msg"]) for item in error.errors()]
    raise UserError(
        "\n".join([f"reward {reward!r}: its options are wrong", *lines]), hint=_known(reward, model)
    )


def _line(model: type[RewardOptions], kind: str, place: tuple[int | str, ...], text: str) -> str:
    path = ".".join(str(part) for part in place)
    if kind == "extra_forbidden":
        close = nearest(str(place[-1]), model.model_fields)
        return f"  {path}: there is no such option" + (f"; did you mean {close}?" if close else "")
    if kind == "missing":
        return f"  {path}: must be given"
    reason = text.removeprefix("Value error, ")
    return f"  {path}: {reason}" if path else f"  {reason}"


def _known(reward: str, model: type[RewardOptions]) -> str:
    if not model.model_fields:
        return f"{reward} has no options."
    fields = model.model_fields.items()
    return f"The options of {reward}:\n" + "\n".join(
        f"  {name}: {field.description}" for name, field in fields
    )
