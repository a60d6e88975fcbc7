"""What the arms of a comparison draw for the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from customized_grpo.errors import UserError
from customized_grpo.pages.comparison_data import ArmView, ComparisonData
from customized_grpo.pages.sample_images import read_samples

MAX_ROWS = 8
"""Prompts on the page."""


@dataclass(frozen=True)
class PromptImages:
    """The images of one prompt in one run.

    Attributes:
        prompt: The prompt.
        subject: Name of the subject; None when it has none.
        reference: The reference image, as all images a data URI; None for a prompt alone.
        base: Drawn before training; None where that was not drawn.
        tuned: Drawn after training.
    """

    prompt: str
    subject: str | None
    reference: str | None
    base: str | None
    tuned: str


@dataclass(frozen=True)
class ArmImages:
    """Images of the runs of one seed, which start from the same noise.

    Attributes:
        seed: The seed.
        arms: Arms of the main charts that finished this seed, and what they draw for the same prompts.
        problems: A sentence on each run whose images cannot be read.
    """

    seed: int
    arms: Sequence[tuple[ArmView, Sequence[PromptImages]]]
    problems: Sequence[str]

    @property
    def prompts(self) -> Sequence[PromptImages]:
        """Return the prompts with what all arms share: reference and base."""
        return self.arms[0][1] if self.arms else ()


def arm_images(data: ComparisonData, folders: Mapping[tuple[str, int], Path]) -> ArmImages | None:
    """Return what the arms of the main charts draw at the end; None before one of them has finished.

    Args:
        data: The comparison.
        folders: Run folder by arm and seed.
    """
    finished = {seed: _finished(data, folders, seed) for seed in data.seeds}
    # the seed that most arms have finished: images of different seeds start from different noise
    seed = max(finished, key=lambda seed: len(finished[seed]), default=None)
    if seed is None or not finished[seed]:
        return None
    arms: list[tuple[ArmView, Sequence[PromptImages]]] = []
    problems = []
    for arm, folder in finished[seed]:
        try:
            images = _read(folder / "samples")
        except UserError as error:  # one damaged file must not end a comparison of many hours
            problems.append(f"{arm.label}: {error.message}")
            continue
        if images:
            arms.append((arm, images))
    return ArmImages(seed, arms, problems) if arms or problems else None


def _finished(
    data: ComparisonData, folders: Mapping[tuple[str, int], Path], seed: int
) -> list[tuple[ArmView, Path]]:
    """Return the arms of the main charts that finished a seed, with their run folders."""
    finished = []
    for arm in data.arms:
        folder = folders.get((arm.name, seed))
        if folder is not None and arm.highlighted and seed in [run["seed"] for run in arm.finished]:
            finished.append((arm, folder))
    return finished


def _read(folder: Path) -> list[PromptImages]:
    """Return the images of a run's first prompts; empty when it drew none.

    Raises:
        UserError: Something is damaged.
    """
    samples = read_samples(folder)
    if samples is None or not samples.iterations:
        return []
    images = []
    for number, row in enumerate(samples.rows[:MAX_ROWS]):
        images.append(
            PromptImages(
                prompt=row.get("prompt") or "",
                subject=row.get("subject"),
                reference=samples.reference(number),
                # iteration 0 is the model that training began with
                base=samples.drawn(number, 0) if 0 in samples.iterations else None,
                tuned=samples.drawn(number, max(samples.iterations)),
            )
        )
    return images
