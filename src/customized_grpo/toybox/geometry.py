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

from customized_grpo.toybox.world import COLOURS, EMBLEMS, PLAIN, RGB, SKIES, SKY_COLOURS, Scene, Subject

Vector = tuple[float, float, float]
ELLIPSOID, BOX, CYLINDER, CONE = range(4)
OF_SUBJECT, OF_SCENE = 1.0, 0.0
_SHAPES = {"ellipsoid": ELLIPSOID, "box": BOX, "cylinder": CYLINDER}
BLACK: RGB = (0.02, 0.02, 0.02)
FOOT = 0.12  # height of the feet's centres and of the body's lower end

EMBLEM_SHADE = 0.62  # of an emblem, as a share of the body's colour: fainter is decided later in denoising
EMBLEM_RADIUS = 0.34  # world units, about 7 pixels
EMBLEM_CODES = (PLAIN, *EMBLEMS)  # the column EMBLEM holds an index of these

# columns of a row of the primitive table
SHAPE, CENTRE, HALF, COLOUR, EMBLEM, SECOND, COS, SIN, OWNER, RADIUS = 0, 1, 4, 7, 10, 11, 14, 15, 16, 17
COLUMNS = 18
MAX_PRIMITIVES = 16
# columns of a row of the backdrop table: floor colour, zenith, horizon, sky index
BACKDROP_COLUMNS = 10


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
        emblem: On its front, of EMBLEM_CODES; its shade is EMBLEM_SHADE times the colour.
    """

    shape: int
    centre: Vector
    half: Vector
    colour: RGB
    yaw: float
    owner: float
    emblem: str = PLAIN

    def row(self) -> list[float]:
        """Return this primitive as one row of the table."""
        shade = [EMBLEM_SHADE * channel for channel in self.colour]
        return [
            float(self.shape), *self.centre, *self.half, *self.colour, float(EMBLEM_CODES.index(self.emblem)),
            *shade, math.cos(self.yaw), math.sin(self.yaw), self.owner, math.hypot(*self.half),
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
        emblem: str = PLAIN,
    ) -> None:
        x, y, z = centre
        cos = math.cos(self.yaw)
        sin = math.sin(self.yaw)
        turned = (x * cos + z * sin, y, -x * sin + z * cos)
        self.parts.append(Primitive(shape, turned, half, colour, self.yaw, OF_SUBJECT, emblem))


def primitives(subject: Subject, scene: Scene) -> list[Primitive]:
    """Return the bodies of one image."""
    toy = _Toy(scene.yaw)
    width, height, depth = subject.body_size
    body_y = FOOT + height
    size = subject.head_size
    head_y = body_y + height + size * 0.72
    toy.add(_SHAPES[subject.body], (0, body_y, 0), subject.body_size, subject.main_colour, subject.emblem)
    toy.add(_SHAPES[subject.head], (0, head_y, 0), (size, size, size), subject.main_colour)
    for side in (-1, 1):
        eye = (side * size * 0.42, head_y + size * 0.15, size * 0.92)
        toy.add(ELLIPSOID, eye, (0.075, 0.085, 0.06), BLACK)
        foot = (side * width * 0.5, FOOT, depth * 0.55)
        toy.add(ELLIPSOID, foot, (0.2, 0.13, 0.26), subject.limb_colour)
        _add_ear(toy, subject, side, head_y)
    toy.add(ELLIPSOID, (0, head_y - size * 0.22, size), (0.11, 0.08, 0.1), subject.limb_colour)
    return [*toy.parts, _prop(scene)]


def _add_ear(toy: _Toy, subject: Subject, side: int, head_y: float) -> None:
    size = subject.head_size
    ear = subject.ear_size
    colour = subject.limb_colour
    if subject.ears == "tall":
        toy.add(
            ELLIPSOID,
            (side * size * 0.55, head_y + size * 1.05, 0),
            (ear * 0.6, ear * 1.7, ear * 0.5),
            colour,
        )
    elif subject.ears == "pointed":
        toy.add(CONE, (side * size * 0.62, head_y + size * 0.75, 0), (ear, ear * 1.8, ear), colour)
    elif subject.ears == "round":
        toy.add(ELLIPSOID, (side * size * 0.85, head_y + size * 0.8, 0), (ear, ear, ear * 0.6), colour)


def _prop(scene: Scene) -> Primitive:
    x = -1.05 if scene.side == "left" else 1.05
    shape, centre, half = {
        "ball": (ELLIPSOID, (x, 0.36, 0.4), (0.36, 0.36, 0.36)),
        "box": (BOX, (x, 0.34, 0.4), (0.33, 0.34, 0.33)),
        "cone": (CONE, (x, 0.0, 0.4), (0.40, 0.95, 0.40)),
    }[scene.prop]
    return Primitive(shape, centre, half, COLOURS[scene.prop_colour], 0.0, OF_SCENE)


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
        backdrops[i] = [*COLOURS[scene.floor_colour], *zenith, *horizon, SKIES.index(scene.sky)]
    return rows, counts, backdrops
