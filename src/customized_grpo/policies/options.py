"""The options that a family has beside the settings of all families, as sections of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from customized_grpo.fields import Count, Section

ReferenceIds = Literal["kontext", "uno"]


class NoOptions(Section):
    """The options of a family that has none."""


NO_OPTIONS = NoOptions()


class Flux1Options(Section):
    """The options of FLUX.1."""

    reference_ids: ReferenceIds = "kontext"
    """How references are placed: by Kontext's frame index or on UNO's diagonal."""
    last_block: Literal["whole", "image"] = "whole"
    """Tokens that the last block computes: all, or the image's, as the rest of its output is dropped."""


class Flux2Options(Section):
    """The options of FLUX.2."""

    text_layers: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] | None = None
    """Hidden states of the text encoder that are joined; null means 9, 18, 27 (klein) or 10, 20, 30 (dev)."""


class Flux3Options(Section):
    """The options of FLUX.3."""

    text_layers: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] | None = None
    """Hidden states of the text encoder that are joined; null means 4, 8, ..., 32."""
