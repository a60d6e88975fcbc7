"""What a run says of its recipe and rows before it begins: no errors, but worth knowing first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from customized_grpo.training.calibration import calibration_notes
from customized_grpo.training.idle import idle_settings
from customized_grpo.training.prompts import prompt_lengths

if TYPE_CHECKING:
    from customized_grpo.training.parts import Parts


def start_notes(parts: Parts) -> list[tuple[str, str]]:
    """Return (name of the event, sentence) of settings without effect, cut prompts and unchecked weights."""
    idle = [("idle setting", sentence) for sentence in idle_settings(parts.config, parts.scorer.rewards)]
    long = [("long prompts", sentence) for sentence in prompt_lengths(parts)]
    return idle + long + calibration_notes(parts.config)
