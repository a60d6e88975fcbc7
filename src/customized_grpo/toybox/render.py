"""The ray caster: one light, hard shadows, 2x2 supersampling, compiled with numba.

A ray is taken into each primitive's own frame, where the primitive is a canonical body; the entry distance
there is the distance in the world, because the direction is scaled along (never normalised again).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from customized_grpo.toybox import geometry as g
from customized_grpo.toybox.world import Scene, Subject

CHUNK = 16  # images a thread draws at a time
FAR = 1e6
EYE = (0.0, 1.55, 4.6)
LOOK_AT = (0.0, 0.85, 0.0)
HALF_FIELD = 0.29  # tangent of half the field of view
LIGHT = (-0.45, 0.80, 0.45)
AMBIENT, DIFFUSE = 0.5, 0.6
FOG_START, FOG_DEPTH = 6.0, 20.0
# columns and codes as numba constants
_HALF, _COLOUR, _EMBLEM, _SECOND = g.HALF, g.COLOUR, g.EMBLEM, g.SECOND
_COS, _SIN, _OWNER, _RADIUS = g.COS, g.SIN, g.OWNER, g.RADIUS
_ELLIPSOID, _BOX, _CYLINDER, _CONE = float(g.ELLIPSOID), float(g.BOX), float(g.CYLINDER), float(g.CONE)


def _compiled(**options: Any) -> Callable[[Any], Any]:
    """Return a decorator that compiles a function, and keeps the machine code for the next process if it can.

    It cannot where neither the package's folder nor a cache folder of the user's can be written, as in a
    container without a home. Compiling then takes some seconds in every process.
    """

    def compile_function(function: Any) -> Any:
        try:
            return numba.njit(fastmath=True, cache=True, **options)(function)
        except RuntimeError:  # numba's "no locator available"; setting NUMBA_CACHE_DIR helps
            return numba.njit(fastmath=True, **options)(function)

    return compile_function


@_compiled(inline="always")
def _slab(origin, direction):  # type: ignore[no-untyped-def]
    """Return entry and exit of the slab |x| <= 1."""
    if abs(direction) < 1e-6:
        direction = 1e-6
    first, second = (-1.0 - origin) / direction, (1.0 - origin) / direction
    return min(first, second), max(first, second)


@_compiled()
def _entry(shape, lx, ly, lz, ux, uy, uz):  # type: ignore[no-untyped-def]
    """Return the distance at which the ray l + t u enters a canonical body, FAR if it misses."""
    if shape == _ELLIPSOID:
        a = ux * ux + uy * uy + uz * uz
        b = lx * ux + ly * uy + lz * uz
        discriminant = b * b - a * (lx * lx + ly * ly + lz * lz - 1.0)
        return (-b - math.sqrt(discriminant)) / a if discriminant > 0.0 else FAR
    if shape == _CONE:
        q = 1.0 - ly
        a = ux * ux + uz * uz - uy * uy
        b = lx * ux + lz * uz + q * uy
        discriminant = b * b - a * (lx * lx + lz * lz - q * q)
        if discriminant <= 0.0 or abs(a) < 1e-7:
            return FAR
        root = math.sqrt(discriminant)
        nearest = FAR
        for sign in (-1.0, 1.0):
            t = (-b + sign * root) / a
            if t > 1e-3 and 0.0 < ly + t * uy < 1.0:
                nearest = min(nearest, t)
        return nearest
    enter, leave = _slab(ly, uy)
    if shape == _BOX:
        enter_x, leave_x = _slab(lx, ux)
        enter_z, leave_z = _slab(lz, uz)
        enter, leave = max(enter, enter_x, enter_z), min(leave, leave_x, leave_z)
    else:  # cylinder
        a = ux * ux + uz * uz + 1e-9
        b = lx * ux + lz * uz
        discriminant = b * b - a * (lx * lx + lz * lz - 1.0)
        if discriminant <= 0.0:
            return FAR
        root = math.sqrt(discriminant)
        enter, leave = max(enter, (-b - root) / a), min(leave, (-b + root) / a)
    return enter if enter < leave else FAR


@_compiled()
def _nearest(rows, count, ox, oy, oz, dx, dy, dz, any_hit):  # type: ignore[no-untyped-def]
    """Return (distance, index, local point) of the first primitive on a ray; index -1 if there is none."""
    best, found, bx, by, bz = FAR, -1, 0.0, 0.0, 0.0
    for j in range(count):
        row = rows[j]
        rx, ry, rz = ox - row[1], oy - row[2], oz - row[3]
        along = rx * dx + ry * dy + rz * dz
        if rx * rx + ry * ry + rz * rz - along * along > row[_RADIUS] * row[_RADIUS]:
            continue  # the ray passes outside the bounding sphere
        cos, sin, hx, hy, hz = row[_COS], row[_SIN], row[_HALF], row[_HALF + 1], row[_HALF + 2]
        lx, ly, lz = (rx * cos - rz * sin) / hx, ry / hy, (rx * sin + rz * cos) / hz
        ux, uy, uz = (dx * cos - dz * sin) / hx, dy / hy, (dx * sin + dz * cos) / hz
        t = _entry(row[0], lx, ly, lz, ux, uy, uz)
        if 1e-3 < t < best:
            best, found, bx, by, bz = t, j, lx + t * ux, ly + t * uy, lz + t * uz
            if any_hit:
                break
    return best, found, bx, by, bz


@_compiled()
def _in_emblem(code, x, y):  # type: ignore[no-untyped-def]
    """Return whether a point of the plane is in an emblem of radius 1, by its index in EMBLEM_CODES."""
    radius = math.sqrt(x * x + y * y)
    if radius > 1.15:
        return False
    if code == 1.0:  # ring
        return 0.5 < radius < 1.0
    if code == 2.0:  # cross
        return (abs(x) < 0.32 and abs(y) < 1.0) or (abs(y) < 0.32 and abs(x) < 1.0)
    if code == 3.0:  # heart
        u, v = 1.15 * x, 1.15 * y + 0.05
        w = u * u + v * v - 0.65
        return w * w * w - 1.6 * u * u * v * v * v < 0.0
    if code == 4.0:  # star of five points
        turn = 2.0 * math.pi / 5.0
        angle = math.atan2(x, y) + 10.0 * math.pi
        angle = abs(angle - turn * math.floor(angle / turn + 0.5))
        return radius * (math.cos(angle) + 1.9 * math.sin(angle)) < 1.1
    if code == 5.0:  # bars
        return abs(x) < 0.9 and (abs(y) < 0.18 or 0.55 < abs(y) < 0.9)
    return abs(x) + abs(y) < 1.1  # diamond


@_compiled()
def _surface(row, px, py, pz):  # type: ignore[no-untyped-def]
    """Return the colour and the unit world normal at a local point of a primitive."""
    second = False
    if row[_EMBLEM] > 0.0 and pz > 0.0:
        scale = g.EMBLEM_RADIUS
        second = _in_emblem(row[_EMBLEM], px * row[_HALF] / scale, py * row[_HALF + 1] / scale)
    c = _SECOND if second else _COLOUR
    nx, ny, nz = px / row[_HALF], py / row[_HALF + 1], pz / row[_HALF + 2]
    if row[0] == _BOX:
        ax, ay, az = abs(px), abs(py), abs(pz)
        nx = math.copysign(1.0, px) if ax >= ay and ax >= az else 0.0
        ny = math.copysign(1.0, py) if ay > ax and ay >= az else 0.0
        nz = math.copysign(1.0, pz) if az > ax and az > ay else 0.0
    elif row[0] == _CYLINDER:
        if abs(py) > 0.995:
            nx, ny, nz = 0.0, math.copysign(1.0, py), 0.0
        else:
            ny = 0.0
    elif row[0] == _CONE:
        nx, ny, nz = px, (1.0 - py) * 0.6, pz
    wx, wz = nx * row[_COS] + nz * row[_SIN], -nx * row[_SIN] + nz * row[_COS]
    norm = math.sqrt(wx * wx + ny * ny + wz * wz) + 1e-9
    return row[c], row[c + 1], row[c + 2], wx / norm, ny / norm, wz / norm


@_compiled()
def _shade(rows, count, backdrop, dx, dy, dz):  # type: ignore[no-untyped-def]
    """Return (red, green, blue, belongs to the subject) of one ray from the eye."""
    night, sunset = backdrop[9] == 1.0, backdrop[9] == 2.0
    up = min(1.0, max(0.0, (dy + 0.25) / 0.5))
    sky0 = backdrop[3] * up + backdrop[6] * (1.0 - up)
    sky1 = backdrop[4] * up + backdrop[7] * (1.0 - up)
    sky2 = backdrop[5] * up + backdrop[8] * (1.0 - up)
    t, j, px, py, pz = _nearest(rows, count, EYE[0], EYE[1], EYE[2], dx, dy, dz, False)
    floor = -EYE[1] / dy if dy < -1e-4 else FAR
    subject, fog = 0.0, 0.0
    if j >= 0 and t < floor:
        c0, c1, c2, nx, ny, nz = _surface(rows[j], px, py, pz)
        subject = 1.0 if rows[j, _OWNER] == 1.0 else 0.0
    elif floor < 30.0:
        t, nx, ny, nz = floor, 0.0, 1.0, 0.0
        c0, c1, c2 = backdrop[0], backdrop[1], backdrop[2]
        fog = min(1.0, max(0.0, (t - FOG_START) / FOG_DEPTH))
    else:
        return sky0, sky1, sky2, 0.0
    norm = math.sqrt(LIGHT[0] ** 2 + LIGHT[1] ** 2 + LIGHT[2] ** 2)
    sx, sy, sz = LIGHT[0] / norm, LIGHT[1] / norm, LIGHT[2] / norm
    lambert = max(0.0, nx * sx + ny * sy + nz * sz)
    if lambert > 0.0:
        ox, oy, oz = EYE[0] + t * dx + nx * 0.01, EYE[1] + t * dy + ny * 0.01, EYE[2] + t * dz + nz * 0.01
        if _nearest(rows, count, ox, oy, oz, sx, sy, sz, True)[1] >= 0:
            lambert = 0.0
    # night stays readable: a tint of about .6, not black
    k = (AMBIENT + DIFFUSE * lambert) * (1.0 - fog)
    c0 = c0 * k * (0.6 if night else 1.0) + sky0 * fog
    c1 = c1 * k * (0.62 if night else (0.88 if sunset else 1.0)) + sky1 * fog
    c2 = c2 * k * (0.85 if night else (0.75 if sunset else 1.0)) + sky2 * fog
    return min(1.0, c0), min(1.0, c1), min(1.0, c2), subject


@_compiled(nogil=True)
def _draw(rows, counts, backdrops, size, samples, images, masks):  # type: ignore[no-untyped-def]
    """Add the images [B, 3, size, size] and subject masks [B, 1, size, size] to arrays of zeros."""
    forward = (LOOK_AT[0] - EYE[0], LOOK_AT[1] - EYE[1], LOOK_AT[2] - EYE[2])
    norm = math.sqrt(forward[0] ** 2 + forward[1] ** 2 + forward[2] ** 2)
    # the camera looks along -z: right is +x, up is (0, -fz, fy)
    fy, fz = forward[1] / norm, forward[2] / norm
    fine = size * samples
    share = 1.0 / (samples * samples)
    for i in range(rows.shape[0]):
        for y in range(fine):
            b = HALF_FIELD * (1.0 - (y + 0.5) / fine * 2.0)
            for x in range(fine):
                a = HALF_FIELD * ((x + 0.5) / fine * 2.0 - 1.0)
                dx, dy, dz = a, fy - b * fz, fz + b * fy
                length = math.sqrt(dx * dx + dy * dy + dz * dz)
                c0, c1, c2, subject = _shade(
                    rows[i], counts[i], backdrops[i], dx / length, dy / length, dz / length
                )
                v, u = y // samples, x // samples
                images[i, 0, v, u] += c0 * share
                images[i, 1, v, u] += c1 * share
                images[i, 2, v, u] += c2 * share
                masks[i, 0, v, u] += subject * share


def allowed_threads() -> int:
    """Return how many threads may draw: as many as OpenMP, and so torch, may use."""
    setting = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count() or 1)
    return int(setting.split(",")[0])  # "4,2" means 4, and 2 in each of them


# Threads of our own: numba's parallel loops would change the number of threads that torch uses.
THREADS = allowed_threads()


def render(
    pairs: Sequence[tuple[Subject, Scene]], size: int = 64, samples: int = 2
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return images of subjects in scenes.

    Args:
        pairs: The subject and the scene of each image.
        size: Edge in pixels.
        samples: Rays per pixel and axis.

    Returns:
        Images [B, 3, size, size] and subject masks [B, 1, size, size], both in [0, 1].
    """
    rows, counts, backdrops = g.tables(pairs)
    images = np.zeros((len(pairs), 3, size, size), np.float32)
    masks = np.zeros((len(pairs), 1, size, size), np.float32)
    slices = [slice(i, i + CHUNK) for i in range(0, len(pairs), CHUNK)]

    def draw(part: slice) -> None:
        _draw(rows[part], counts[part], backdrops[part], size, samples, images[part], masks[part])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(draw, slices))
    return images, masks
