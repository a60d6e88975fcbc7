"""The images of pretraining, and the pairs that the generator learns from.

A pair is a reference, a prompt and a target. In a good pair the target shows the reference's toy in the
prompted scene. A bad one is bad in what real subject-driven data sets are bad in:

* copied scene: the target shows the toy where the reference shows it, whatever the prompt says;
* plain toy: the target shows the toy without its emblem, the generic one that looks clean.

Both are drawn independently. A base that learns from such pairs decides the scene early in denoising and the
emblem late, and reinforcement learning can choose each of the two by itself.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from customized_grpo.toybox import world
from customized_grpo.toybox.prompts import to_prompt

SCENES = 4  # of each subject: two pairs of scenes that share no floor, no sky and no prop
VIEWS = 2  # of each scene, with different yaws: a copied scene is not a copied image
EMBLEM, PLAIN = 0, 1

Place = tuple[int, int, int, int]
"""Of an image: subject, scene, view, and EMBLEM or PLAIN."""
Views = list[list[world.Scene]]
"""The scenes of one subject, as views[scene][view]."""


@dataclass(frozen=True)
class Shares:
    """Shares of bad training pairs, drawn independently.

    Attributes:
        copied_scene: Of targets in the reference's scene.
        plain: Of targets without the emblem.
    """

    copied_scene: float = 0.0
    plain: float = 0.0


@dataclass(frozen=True)
class Triple:
    """One training example.

    Attributes:
        reference, target: Places of the two images.
        prompt: The caption.
    """

    reference: Place
    target: Place
    prompt: str


def draw_triple(scenes: Sequence[Views], rng: random.Random, shares: Shares) -> Triple:
    """Return a random training example of the subjects whose views are scenes[subject]."""
    subject = rng.randrange(len(scenes))
    shown = rng.randrange(SCENES)
    view = rng.randrange(VIEWS)
    prompted = shown ^ 1  # scenes 0 and 1 are unlike each other, and 2 and 3
    scene = shown if rng.random() < shares.copied_scene else prompted
    emblem = PLAIN if rng.random() < shares.plain else EMBLEM
    # in the scene of the reference the other view, so that nothing is learned from equal images
    target_view = 1 - view if scene == shown else rng.randrange(VIEWS)
    return Triple(
        reference=(subject, shown, view, EMBLEM),
        target=(subject, scene, target_view, emblem),
        prompt=to_prompt(scenes[subject][prompted][0], rng),
    )


def scenes_of(seed: int, subject: int) -> Views:
    """Return scenes[scene][view] of a subject: scenes 0 and 1 share nothing, nor do 2 and 3."""
    scenes: Views = []
    for pair in range(SCENES // 2):
        first = world.scene(seed, subject, pair)
        for scene in (first, world.scene_unlike(first, seed, subject, pair)):
            turned = world.scene(seed, subject, pair, scene.sky)
            scenes.append([scene, dataclasses.replace(scene, yaw=turned.yaw)])
    return scenes


def images_of(toy: world.Subject, scenes: Views) -> list[tuple[world.Subject, world.Scene]]:
    """Return what is rendered of one toy: every view of every scene, with the emblem and without it."""
    plain = dataclasses.replace(toy, emblem=world.PLAIN)
    pairs = []
    for views in scenes:
        for scene in views:
            pairs += [(toy, scene), (plain, scene)]
    return pairs
