"""Prompt weights that were measured, and the rollout that they were measured for.

`cgrpo doctor RECIPE --calibrate FILE` writes them; the schedule `calibrated` reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from customized_grpo.errors import UserError
from customized_grpo.fields import CountOrZero, NonNegative, Section, Share, Text
from customized_grpo.files import read_json

KEY = "calibration"
"""Key of the weights in the file; its other keys are about how they came to be."""
MAX_BYTES = 1 << 20
SAME_LEVEL = 1e-4
"""Noise levels that differ by less are the same but for rounding."""


class Calibration(Section):
    """Measured prompt weights with all that a rollout must share with the one that was measured."""

    prompt_weights: Annotated[tuple[Share, ...], Field(min_length=2)]
    """Prompt weight of each denoising step."""
    sampler: Text
    """Name of the sampler."""
    eta: NonNegative
    """Its noise scale."""
    sigmas: Annotated[tuple[Share, ...], Field(min_length=3)]
    """Noise levels: one more than there are steps."""
    noisy_steps: Annotated[tuple[CountOrZero, ...], Field(min_length=1)]
    """Steps that drew noise; nothing is known of the others, whose weight is .5."""
    base: Text | None
    """Fingerprint of the base's files; null where they are not known."""
    guidance: NonNegative | None = None
    """Guidance scale; null in a file of a version that did not write it."""

    def other_rollout(
        self, n_steps: int, sampler: str, eta: float, noisy_steps: Collection[int]
    ) -> Sequence[str]:
        """Return in words what a recipe's rollout does not share with the measured one.

        Args:
            n_steps: T.
            sampler: Name of the sampler.
            eta: Its noise scale.
            noisy_steps: Every step that draws noise at some time.
        """
        differences = []
        if n_steps != len(self.prompt_weights):
            differences.append(f"{len(self.prompt_weights)} steps, not {n_steps}")
        if sampler != self.sampler:
            differences.append(f"the sampler {self.sampler}, not {sampler}")
        if eta != self.eta:
            differences.append(f"eta {self.eta:g}, not {eta:g}")
        unknown = sorted(set(noisy_steps) - set(self.noisy_steps))
        if unknown and n_steps == len(self.prompt_weights):
            differences.append(f"no noise in the steps {', '.join(map(str, unknown))}")
        return differences

    def other_levels(self, sigmas: Sequence[float]) -> str | None:
        """Return in words where noise levels [T + 1] are not those measured at; None where they are."""
        pairs = enumerate(zip(self.sigmas, sigmas, strict=True))
        far = [(step, old, new) for step, (old, new) in pairs if abs(old - new) > SAME_LEVEL]
        if not far:
            return None
        step, old, new = max(far, key=lambda entry: abs(entry[1] - entry[2]))
        return f"another shift: sigma {old:.3f} before step {step}, not {new:.3f}"


class ReadCalibration(Calibration):
    """A calibration that was read from a file, as a recipe keeps it."""

    read_from: Text
    """The file."""


def read_calibration(path: Path) -> ReadCalibration:
    """Return the calibration of a file.

    Raises:
        UserError: It is missing or damaged, or no such file.
    """
    hint = f"`cgrpo doctor RECIPE schedule.name=tdw --calibrate {path}` measures and writes it."
    if path.exists() and not path.is_file():  # a device or a pipe has no end
        raise UserError(f"{path}: not an ordinary file", hint=hint)
    try:
        entry = read_json(path, max_bytes=MAX_BYTES).get(KEY)
    except UserError as error:
        raise UserError(error.message, hint=hint) from error
    if not isinstance(entry, dict):
        raise UserError(f"{path} holds no calibrated weights", hint=hint)
    try:
        return ReadCalibration.model_validate({**entry, "read_from": str(path)}, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is damaged: {place}: {first['msg']}", hint=hint) from error
