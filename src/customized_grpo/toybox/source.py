"""ToyBox as a source of examples: a row is rendered when it is read, and is a function of its index."""

from __future__ import annotations

import torch

from customized_grpo.data.examples import Example
from customized_grpo.seeding import derive_seed, generator
from customized_grpo.toybox import prompts, world
from customized_grpo.toybox.render import render

TRAIN_PROMPTS_PER_SUBJECT = 16


class ToyBoxSource:
    """Training or held-out rows about `subjects` toys, each in `prompts_per_subject` scenes.

    Args:
        subjects: Number of subjects.
        prompts_per_subject: Prompts about each subject, each with a reference of its own.
        seed: Seed of the world.
        split: Name of the split; splits have different subjects, prompts and references.
    """

    def __init__(self, subjects: int, prompts_per_subject: int, seed: int, split: str) -> None:
        self.subjects = subjects
        self.prompts_per_subject = prompts_per_subject
        self.split = split
        self.seed = derive_seed(seed, "toybox", split)

    def __len__(self) -> int:
        return self.subjects * self.prompts_per_subject

    def scenes(self, index: int) -> tuple[world.Scene, world.Scene, world.Scene]:
        """Return the scenes of row `index`: reference, prompted (unlike it), and an unrelated third one."""
        reference = world.scene(self.seed, "reference", index)
        prompted = world.scene_unlike(reference, self.seed, "prompted", index)
        return reference, prompted, world.scene(self.seed, "other", index)

    def toy(self, index: int) -> world.Subject:
        """Return the subject of row `index`; consecutive rows are about different subjects."""
        return world.subject(self.seed, index % self.subjects)

    def __getitem__(self, index: int) -> Example:
        """Render row `index`.

        `meta` holds the prompted scene, the reference's scene, the emblem, and `other_view`: the subject in
        a third scene, which an honest image resembles as much as it resembles the reference.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        toy = self.toy(index)
        reference, prompted, other = self.scenes(index)
        pixels, subject_masks = render([(toy, reference), (toy, prompted), (toy, other)])
        images = torch.from_numpy(pixels)
        masks = torch.from_numpy(subject_masks)
        wording = int(torch.randint(2**31, (1,), generator=generator(self.seed, "words", index)))
        return Example(
            id=f"{self.split}-{index:05d}",
            prompt=prompts.paraphrase(prompted, wording),
            references=(images[0],),
            masks=(masks[0],),
            target=images[1],
            subject=f"toy-{index % self.subjects:04d}",
            meta={
                "scene": prompted,
                "reference_scene": reference,
                "emblem": toy.emblem,
                "other_view": images[2],
            },
        )
