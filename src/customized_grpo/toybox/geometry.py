"""The table of primitives that the ray caster draws, made from a subject in a scene.

Every primitive is a canonical body (unit sphere, unit cube, unit cylinder, unit cone) that is scaled by
`half`, turned about the vertical axis and moved to `centre`. The toy faces +z; its yaw turns it as a whole,
while props do not turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from customized_grpo.toybox.world import COLOURS, FLOORS, PATTERNS, RGB, SKIES, SKY_COLOURS, Scene, Subject

Vector = tuple[float, float, float]
ELLIPSOID, BOX, CYLINDER, CONE = range(4)
OF_SUBJECT, OF_SCENE = 1.0, 0.0
_SHAPES = {"ellipsoid": ELLIPSOID, "box": BOX, "cylinder": CYLINDER}
BLACK: RGB = (0.02, 0.02, 0.02)

# columns of a row of the primitive table
SHAPE, CENTRE, HALF, COLOUR, PATTERN, SECOND, FREQUENCY, COS, SIN, OWNER, RADIUS = (
    0, 1, 4, 7, 10, 11, 14, 15, 16, 17, 18,
)  # fmt: skip
COLUMNS = 19
MAX_PRIMITIVES = 24
# columns of a row of the backdrop table: floor pattern, floor colour, zenith, horizon, sky index
BACKDROP_COLUMNS = 11


@dataclass(frozen=True)
class Primitive:
    """One body of a scene.

    Attributes:
        shape: ELLIPSOID, BOX, CYLINDER or CONE.
        centre: Of the body; of its base for a cone.
        half: Half extents; for a cone the radius of its base and its whole height.
        colour: Its colour.
        yaw: Its angle about the vertical axis, in radians.
        owner: OF_SUBJECT or OF_SCENE; only the subject's bodies are in the mask.
        pattern: Of world.PATTERNS.
        second_colour: Colour of the pattern.
        frequency: Of the pattern, in radians per half extent.
    """

    shape: int
    centre: Vector
    half: Vector
    colour: RGB
    yaw: float
    owner: float
    pattern: str = "plain"
    second_colour: RGB = BLACK
    frequency: float = 0.0

    def row(self) -> list[float]:
        """Return this primitive as one row of the table."""
        return [
            float(self.shape), *self.centre, *self.half, *self.colour, float(PATTERNS.index(self.pattern)),
            *self.second_colour, self.frequency, math.cos(self.yaw), math.sin(self.yaw), self.owner,
            math.hypot(*self.half),
        ]  # fmt: skip


class _Toy:
    """The primitives that turn with the toy."""

    def __init__(self, yaw: float) -> None:
        self.yaw = yaw
        self.parts: list[Primitive] = []

    def add(
        self,
        shape: int,
        centre: Vector,
        half: Vector,
        colour: RGB,
        owner: float = OF_SUBJECT,
        pattern: tuple[str, RGB, float] = ("plain", BLACK, 0.0),
    ) -> None:
        x, y, z = centre
        cos = math.cos(self.yaw)
        sin = math.sin(self.yaw)
        turned = (x * cos + z * sin, y, -x * sin + z * cos)
        self.parts.append(Primitive(shape, turned, half, colour, self.yaw, owner, *pattern))


def primitives(subject: Subject, scene: Scene) -> list[Primitive]:
    """Return the bodies of one image."""
    toy = _Toy(scene.yaw)
    width, height, depth = subject.body_size
    body_y = subject.leg + height
    size = subject.head_size
    head_y = body_y + height * 0.7 + size * 0.7
    head_z = depth * 0.75
    pattern = (subject.pattern, subject.second_colour, subject.pattern_frequency)
    toy.add(_SHAPES[subject.body], (0, body_y, 0), subject.body_size, subject.main_colour, pattern=pattern)
    toy.add(_SHAPES[subject.head], (0, head_y, head_z), (size, size, size), subject.main_colour)
    for side in (-1, 1):
        toy.add(
            ELLIPSOID,
            (side * size * 0.42, head_y + size * 0.2, head_z + size * 0.9),
            (0.07, 0.07, 0.05),
            BLACK,
        )
        _add_ear(toy, subject, side, head_y, head_z)
        for end in (-1, 1):
            leg = (0.1, subject.leg * 0.5 + 0.1, 0.1)
            toy.add(CYLINDER, (side * width * 0.6, leg[1], end * depth * 0.6), leg, subject.limb_colour)
    nose = (size * 0.35, size * 0.28, size * 0.2 + subject.nose)
    toy.add(ELLIPSOID, (0, head_y - size * 0.15, head_z + size), nose, subject.second_colour)
    if subject.tail == "stub":
        toy.add(ELLIPSOID, (0, body_y + 0.1, -depth - 0.15), (0.12, 0.12, 0.25), subject.limb_colour)
    elif subject.tail == "upright":
        toy.add(ELLIPSOID, (0, body_y + 0.35, -depth - 0.05), (0.1, 0.4, 0.1), subject.second_colour)
    _add_hat(toy, scene, head_y + size * (1.0 if subject.head == "box" else 0.95), head_z)
    return toy.parts + _prop(scene)


def _add_ear(toy: _Toy, subject: Subject, side: int, head_y: float, head_z: float) -> None:
    size = subject.head_size
    ear = subject.ear_size
    colour = subject.limb_colour
    if subject.ears == "tall":
        toy.add(
            ELLIPSOID,
            (side * size * 0.7, head_y + size * 0.95, head_z),
            (ear * 0.6, ear * 1.6, ear * 0.5),
            colour,
        )
    elif subject.ears == "pointed":
        toy.add(CONE, (side * size * 0.65, head_y + size * 0.8, head_z), (ear, ear * 1.6, ear), colour)
    elif subject.ears == "side":
        toy.add(ELLIPSOID, (side * size * 1.05, head_y + size * 0.1, head_z), (ear, ear, ear * 0.6), colour)


def _add_hat(toy: _Toy, scene: Scene, top: float, head_z: float) -> None:
    if scene.hat_colour is None:
        return
    colour = COLOURS[scene.hat_colour]
    if scene.hat == "party hat":
        toy.add(CONE, (0, top - 0.03, head_z), (0.24, 0.55, 0.24), colour, OF_SCENE)
    elif scene.hat == "top hat":
        toy.add(CYLINDER, (0, top + 0.02, head_z), (0.36, 0.035, 0.36), colour, OF_SCENE)
        toy.add(CYLINDER, (0, top + 0.22, head_z), (0.22, 0.21, 0.22), colour, OF_SCENE)
    else:
        toy.add(ELLIPSOID, (0, top + 0.24, head_z), (0.40, 0.075, 0.40), colour, OF_SCENE)


def _prop(scene: Scene) -> list[Primitive]:
    if scene.prop_colour is None:
        return []
    colour = COLOURS[scene.prop_colour]
    x = -1.0 if scene.side == "left" else 1.0
    shape, centre, half = {
        "ball": (ELLIPSOID, (x, 0.33, 0.5), (0.33, 0.33, 0.33)),
        "box": (BOX, (x, 0.30, 0.5), (0.30, 0.30, 0.30)),
        "cone": (CONE, (x, 0.0, 0.5), (0.35, 0.80, 0.35)),
    }[scene.prop]
    return [Primitive(shape, centre, half, colour, 0.0, OF_SCENE)]


def tables(
    pairs: Sequence[tuple[Subject, Scene]],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the tables that the ray caster reads.

    Returns:
        Primitive rows [B, MAX_PRIMITIVES, COLUMNS], their number [B], backdrops [B, BACKDROP_COLUMNS].
    """
    rows = np.zeros((len(pairs), MAX_PRIMITIVES, COLUMNS), np.float32)
    counts = np.zeros(len(pairs), np.int64)
    backdrops = np.zeros((len(pairs), BACKDROP_COLUMNS), np.float32)
    for i, (subject, scene) in enumerate(pairs):
        parts = primitives(subject, scene)
        counts[i] = len(parts)
        rows[i, : len(parts)] = [part.row() for part in parts]
        zenith, horizon = SKY_COLOURS[scene.sky]
        floor = float(FLOORS.index(scene.floor))
        backdrops[i] = [floor, *COLOURS[scene.floor_colour], *zenith, *horizon, SKIES.index(scene.sky)]
    return rows, counts, backdrops
