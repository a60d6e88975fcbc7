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
    "pink": (0.95, 0.50, 0.70),
}
HATS = ("none", "party hat", "top hat", "halo")
PROPS = ("none", "ball", "box", "cone")
SIDES = ("left", "right")
FLOORS = ("plain", "checkered", "striped")
SKIES = ("morning", "night", "sunset", "studio")
# (zenith, horizon) of each sky
SKY_COLOURS: dict[str, tuple[RGB, RGB]] = {
    "morning": ((0.55, 0.80, 1.00), (0.90, 0.95, 1.00)),
    "night": ((0.03, 0.03, 0.12), (0.12, 0.12, 0.30)),
    "sunset": ((0.95, 0.45, 0.20), (1.00, 0.80, 0.50)),
    "studio": ((0.80, 0.80, 0.80), (0.95, 0.95, 0.95)),
}
MAX_YAW = 1.1  # radians; the view is free, so copying the reference's pixels is not the right answer

BODIES = ("ellipsoid", "box", "cylinder")
HEADS = ("ellipsoid", "box")
EARS = ("none", "tall", "pointed", "side")
TAILS = ("none", "stub", "upright")
PATTERNS = ("plain", "stripes", "spots")


@dataclass(frozen=True)
class Subject:
    """One toy animal: everything that must survive from reference to output.

    Attributes:
        body, head, ears, tail: Shapes, of BODIES, HEADS, EARS and TAILS.
        body_size: Half width, half height and half depth of the body, in world units as all lengths.
        head_size: Half edge or radius of the head.
        ear_size: Radius of an ear.
        nose: How much the nose is longer than the shortest one.
        leg: Height of the body's lower end over the floor.
        main_colour, second_colour, limb_colour: Of body and head, of pattern and nose, of limbs and ears.
        pattern: Of the body, of PATTERNS.
        pattern_frequency: In radians per half size of the body.
    """

    body: str
    body_size: tuple[float, float, float]
    head: str
    head_size: float
    ears: str
    ear_size: float
    tail: str
    nose: float
    leg: float
    main_colour: RGB
    second_colour: RGB
    limb_colour: RGB
    pattern: str
    pattern_frequency: float


@dataclass(frozen=True)
class Scene:
    """Everything a prompt can ask for, and the view, which is free.

    Attributes:
        hat, prop: "none" if there is none.
        hat_colour, prop_colour, side: None exactly when there is no hat or no prop.
        floor, floor_colour, sky: Always there.
        yaw: Angle of the toy in radians; never mentioned in a prompt.
    """

    hat: str
    hat_colour: str | None
    prop: str
    prop_colour: str | None
    side: str | None
    floor: str
    floor_colour: str
    sky: str
    yaw: float = 0.0


def subject(seed: int, index: int) -> Subject:
    """Return toy number `index` of the world `seed`; train and held-out worlds use different seeds."""
    rng = random.Random(derive_seed(seed, "subject", index))

    def colour() -> RGB:
        return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.55, 0.95), rng.uniform(0.45, 0.95))

    return Subject(
        body=rng.choice(BODIES),
        body_size=(rng.uniform(0.38, 0.60), rng.uniform(0.35, 0.55), rng.uniform(0.40, 0.70)),
        head=rng.choice(HEADS),
        head_size=rng.uniform(0.26, 0.38),
        ears=rng.choice(EARS),
        ear_size=rng.uniform(0.12, 0.20),
        tail=rng.choice(TAILS),
        nose=rng.uniform(0.0, 0.2),
        leg=rng.uniform(0.15, 0.35),
        main_colour=colour(),
        second_colour=colour(),
        limb_colour=colour(),
        pattern=rng.choice(PATTERNS),
        pattern_frequency=rng.uniform(5.0, 10.0),
    )


def scene(seed: int, *keys: int | str) -> Scene:
    """Return a scene, a function of `seed` and `keys` (for example the subject's index and the view)."""
    rng = random.Random(derive_seed(seed, "scene", *keys))
    colours = list(COLOURS)
    # colours and side are drawn even where there is no hat or prop: every scene takes as many random numbers
    hat = rng.choice(HATS)
    prop = rng.choice(PROPS)
    hat_colour = rng.choice(colours)
    prop_colour = rng.choice(colours)
    side = rng.choice(SIDES)
    return Scene(
        hat=hat,
        hat_colour=None if hat == "none" else hat_colour,
        prop=prop,
        prop_colour=None if prop == "none" else prop_colour,
        side=None if prop == "none" else side,
        floor=rng.choice(FLOORS),
        floor_colour=rng.choice(colours),
        sky=rng.choice(SKIES),
        yaw=rng.uniform(-MAX_YAW, MAX_YAW),
    )
