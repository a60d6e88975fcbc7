"""What a run says of its recipe and rows before it begins: no errors, but worth knowing first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from customized_grpo.training.calibration import calibration_notes
from customized_grpo.training.idle import idle_settings
from customized_grpo.training.prompts import prompt_lengths

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.training.parts import Parts


def start_notes(parts: Parts) -> list[tuple[str, str]]:
    """Return (name of the event, sentence) of what is worth knowing of a run before it begins."""
    idle = [("idle setting", sentence) for sentence in idle_settings(parts.config, parts.scorer.rewards)]
    long = [("long prompts", sentence) for sentence in prompt_lengths(parts)]
    return [*_start(parts.config), *idle, *long, *calibration_notes(parts.config)]


def _start(config: Config) -> list[tuple[str, str]]:
    """Return the shape of the adapter that is continued: the recipe's own `model.lora` does not count."""
    model = config.model
    if model.start_lora is None:
        return []
    lora = model.lora
    return [("start", f"training continues {model.start_lora}: rank {lora.rank}, alpha {lora.alpha:g}")]
