"""Settings of a generator that only generates: a recipe's `model` section, and how it draws."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError

from customized_grpo.config.loading import apply_overrides, parse_overrides
from customized_grpo.config.mistakes import explain, listed
from customized_grpo.config.part_options import gather_options
from customized_grpo.config.schema import ModelConfig
from customized_grpo.errors import UserError
from customized_grpo.fields import Count, Pixels, Section
from customized_grpo.reference_sizes import ReferenceRule


class GeneratorSettings(Section):
    """What drawing images needs to know."""

    model: ModelConfig
    steps: Annotated[int, Field(ge=1, le=1_000)]
    """Denoising steps of an image, all without noise."""
    batch_size: Count
    """Images drawn together: a matter of memory and speed, not of results."""
    reference_size: ReferenceRule | Pixels = "image"
    """Size at which the model sees references, as in `data.reference_size` of a recipe."""


def generator_settings(
    source: str, defaults: Mapping[str, Any], overrides: Sequence[str] = ()
) -> GeneratorSettings:
    """Apply overrides to the settings that a generator comes with, and check them as strictly as a recipe.

    Args:
        source: What is opened, for the message.
        defaults: Its own settings, as plain values: {"model": {...}, "steps": ..., "batch_size": ...,
            "reference_size": ...}.
        overrides: Each `model.key=value`, or `steps=value` and so on, the value in YAML.

    Raises:
        UserError: Lists every mistake with its dotted path and what to write instead.
    """
    # overrides are written into it, and the defaults belong to the caller
    data = copy.deepcopy(dict(defaults))
    settings, mistakes = parse_overrides(overrides)
    mistakes += apply_overrides(data, settings)
    mistakes += gather_options(data, "model")
    checked: GeneratorSettings | None = None
    try:
        checked = GeneratorSettings.model_validate(data)
    except ValidationError as error:
        mistakes += explain(error.errors(include_url=False))
    if checked is None or mistakes:
        raise UserError(
            f"the settings of {source} do not hold:\n{listed(mistakes)}",
            "Settings are model.KEY=VALUE, steps=N, batch_size=N and reference_size=RULE; "
            "`cgrpo config schema` lists the keys.",
        )
    return checked
