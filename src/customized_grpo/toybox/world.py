"""The content of the ToyBox: subjects (the identity) and scenes (what a prompt asks for).

Both are frozen dataclasses drawn from a seed, so a world needs no files: subject 17 of seed 0 is the same toy
everywhere.
"""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass

from customized_grpo.seeding import derive_seed

RGB = tuple[float, float, float]

COLOURS: dict[str, RGB] = {
    "red": (0.85, 0.12, 0.12),
    "green": (0.15, 0.65, 0.20),
    "blue": (0.15, 0.30, 0.85),
    "yellow": (0.95, 0.82, 0.15),
    "purple": (0.55, 0.20, 0.70),
    "orange": (0.95, 0.50, 0.10),
    "white": (0.93, 0.93, 0.93),
    "brown": (0.45, 0.28, 0.15),
}
PROPS = ("ball", "box", "cone")
SIDES = ("left", "right")
SKIES = ("morning", "night", "sunset", "studio")
# (zenith, horizon) of each sky
SKY_COLOURS: dict[str, tuple[RGB, RGB]] = {
    "morning": ((0.45, 0.72, 1.00), (0.80, 0.92, 1.00)),
    "night": ((0.04, 0.04, 0.16), (0.12, 0.12, 0.32)),
    "sunset": ((0.95, 0.45, 0.20), (1.00, 0.75, 0.45)),
    "studio": ((0.72, 0.72, 0.72), (0.92, 0.92, 0.92)),
}
MAX_YAW = 0.35  # radians; the view is free, so copying the reference's pixels is not the right answer

BODIES = ("ellipsoid", "box", "cylinder")
HEADS = ("ellipsoid", "box")
EARS = ("none", "tall", "pointed", "round")
# hues of toys; with shapes and sizes there are about 40,000 kinds of toys, each slightly varied
MAIN_HUES = (0.0, 0.08, 0.15, 0.33, 0.5, 0.62, 0.77, 0.9)
LIMB_HUES = (0.02, 0.13, 0.35, 0.55, 0.7, 0.85)
BODY_SIZES = ((0.50, 0.56, 0.44), (0.56, 0.52, 0.48), (0.62, 0.50, 0.50))
HEAD_SIZES = (0.32, 0.39)
EMBLEMS = ("ring", "cross", "heart", "star", "bars", "diamond")
PLAIN = "plain"  # no emblem: the generic toy, which no subject is


@dataclass(frozen=True)
class Subject:
    """One toy animal: everything that must survive from reference to output.

    Attributes:
        body, head, ears: Shapes, of BODIES, HEADS and EARS.
        body_size: Half width, half height and half depth of the body, in world units as all lengths.
        head_size: Half edge or radius of the head.
        ear_size: Radius of an ear.
        main_colour, limb_colour: Of body and head, of ears, nose and feet.
        emblem: On the belly, of EMBLEMS: the detail that denoising decides late. PLAIN for the generic toy.
    """

    body: str
    body_size: tuple[float, float, float]
    head: str
    head_size: float
    ears: str
    ear_size: float
    main_colour: RGB
    limb_colour: RGB
    emblem: str


@dataclass(frozen=True)
class Scene:
    """Everything a prompt asks for, and the view, which is free.

    Attributes:
        prop, prop_colour, side: What stands beside the toy, of PROPS, COLOURS and SIDES.
        floor_colour, sky: Of COLOURS and SKIES.
        yaw: Angle of the toy in radians; never mentioned in a prompt.
    """

    prop: str
    prop_colour: str
    side: str
    floor_colour: str
    sky: str
    yaw: float = 0.0


def subject(seed: int, index: int) -> Subject:
    """Return toy number `index` of the world `seed`; train and held-out worlds use different seeds."""
    rng = random.Random(derive_seed(seed, "subject", index))

    def near(value: float, share: float = 0.03) -> float:
        return value * rng.uniform(1 - share, 1 + share)

    def colour(hues: tuple[float, ...]) -> RGB:
        hue = rng.choice(hues) + rng.uniform(-0.015, 0.015)
        return colorsys.hsv_to_rgb(hue % 1, near(0.7), near(0.85))

    width, height, depth = rng.choice(BODY_SIZES)
    return Subject(
        body=rng.choice(BODIES),
        body_size=(near(width), near(height), near(depth)),
        head=rng.choice(HEADS),
        head_size=near(rng.choice(HEAD_SIZES)),
        ears=rng.choice(EARS),
        ear_size=near(0.17),
        # bright, so that an emblem in a darker shade can be seen
        main_colour=colour(MAIN_HUES),
        limb_colour=colour(LIMB_HUES),
        emblem=rng.choice(EMBLEMS),
    )


def scene(seed: int, *keys: int | str) -> Scene:
    """Return a scene, a function of `seed` and `keys` (for example the subject's index and the view)."""
    rng = random.Random(derive_seed(seed, "scene", *keys))
    colours = list(COLOURS)
    return Scene(
        prop=rng.choice(PROPS),
        prop_colour=rng.choice(colours),
        side=rng.choice(SIDES),
        floor_colour=rng.choice(colours),
        sky=rng.choice(SKIES),
        yaw=rng.uniform(-MAX_YAW, MAX_YAW),
    )


def scene_unlike(first: Scene, seed: int, *keys: int | str) -> Scene:
    """Return a scene that shares no floor, sky, shape or colour of the prop with `first`.

    So it is never in doubt which of the two scenes an image shows.
    """
    rng = random.Random(derive_seed(seed, "scene unlike", *keys))
    return Scene(
        prop=rng.choice([prop for prop in PROPS if prop != first.prop]),
        prop_colour=rng.choice([colour for colour in COLOURS if colour != first.prop_colour]),
        side=rng.choice(SIDES),
        floor_colour=rng.choice([colour for colour in COLOURS if colour != first.floor_colour]),
        sky=rng.choice([sky for sky in SKIES if sky != first.sky]),
        yaw=rng.uniform(-MAX_YAW, MAX_YAW),
    )
