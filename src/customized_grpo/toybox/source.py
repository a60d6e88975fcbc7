"""ToyBox as a source of examples: rendered when asked for, always the same for the same index."""

from __future__ import annotations

import torch

from customized_grpo.data.examples import Example
from customized_grpo.seeding import derive_seed, generator
from customized_grpo.toybox import prompts, world
from customized_grpo.toybox.render import render

TRAIN_PROMPTS_PER_SUBJECT = 16


class ToyBoxSource:
    """`subjects` toys, each asked for in `prompts_per_subject` scenes.

    Args:
        subjects: Number of subjects.
        prompts_per_subject: Prompts about each of them, each with a reference of its own.
        seed: Seed of the world.
        split: Name of the split; splits have different subjects, prompts and references.
    """

    def __init__(self, subjects: int, prompts_per_subject: int, seed: int, split: str) -> None:
        self.subjects, self.prompts_per_subject = subjects, prompts_per_subject
        self.split, self.seed = split, derive_seed(seed, "toybox", split)

    def __len__(self) -> int:
        return self.subjects * self.prompts_per_subject

    def scenes(self, index: int) -> tuple[world.Scene, world.Scene, world.Scene]:
        """Return the scenes of row `index`: reference, prompted, and an unrelated third view."""
        return tuple(world.scene(self.seed, kind, index) for kind in ("reference", "prompted", "other"))  # type: ignore[return-value]

    def toy(self, index: int) -> world.Subject:
        """Return the subject of row `index`; consecutive rows are about different subjects."""
        return world.subject(self.seed, index % self.subjects)

    def __getitem__(self, index: int) -> Example:
        """Render row `index`.

        `meta` holds the prompted scene, the reference's scene, and `other_view`: the subject in a third
        scene, which an honest picture resembles as much as it resembles the reference.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        toy, (reference, prompted, other) = self.toy(index), self.scenes(index)
        images, masks = (
            torch.from_numpy(a) for a in render([(toy, s) for s in (reference, prompted, other)])
        )
        words = int(torch.randint(2**31, (1,), generator=generator(self.seed, "words", index)))
        return Example(
            id=f"{self.split}-{index:05d}",
            prompt=prompts.paraphrase(prompted, words),
            references=(images[0],),
            masks=(masks[0],),
            target=images[1],
            subject=f"toy-{index % self.subjects:04d}",
            meta={"scene": prompted, "reference_scene": reference, "other_view": images[2]},
        )
