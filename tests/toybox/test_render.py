"""The ray caster against closed forms, a brute-force oracle in fp64, and what a picture promises.

World: x to the right, y up, the camera looks along -z. Pixels: row 0 is the top.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pytest
import torch

from customized_grpo.toybox import geometry, render, world
from processes import run_python
from toybox_grammar import second_view

Array = npt.NDArray[np.float64]
DrawParts = Callable[..., tuple[Array, Array]]
EYE = np.array(render.EYE)
SUN = np.array(render.LIGHT) / np.linalg.norm(render.LIGHT)
STUDIO = world.Scene("ball", "red", "left", "green", "studio")
GREEN = np.array(world.COLOURS["green"])


def axes() -> tuple[Array, Array, Array]:
    """Right, up and forward of the camera."""
    forward = np.array(render.LOOK_AT) - EYE
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    return right, np.cross(right, forward), forward


def rays(size: int) -> Array:
    """Unit directions through the pixel centres, [size, size, 3]."""
    right, up, forward = axes()
    grid = render.HALF_FIELD * ((np.arange(size) + 0.5) / size * 2 - 1)
    directions = forward + grid[None, :, None] * right - grid[:, None, None] * up
    return directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def pixel_of(point: Array, size: int) -> tuple[int, int]:
    """Row and column that show a point of the world."""
    right, up, forward = axes()
    offset = point - EYE
    a, b = offset @ right / (offset @ forward), offset @ up / (offset @ forward)
    edge = render.HALF_FIELD
    return int((1 - b / edge) / 2 * size), int((1 + a / edge) / 2 * size)


def sphere(
    centre: Array, radius: float, colour: world.RGB = (0.4, 0.3, 0.2), owner: float = geometry.OF_SUBJECT
) -> geometry.Primitive:
    x, y, z = (float(v) for v in centre)
    return geometry.Primitive(geometry.ELLIPSOID, (x, y, z), (radius, radius, radius), colour, 0.0, owner)


@pytest.fixture
def draw_parts(monkeypatch: pytest.MonkeyPatch) -> DrawParts:
    """Render given bodies instead of a toy: image [size, size, 3] and mask [size, size]."""

    def draw(
        *parts: geometry.Primitive, size: int = 64, samples: int = 1, scene: world.Scene = STUDIO
    ) -> tuple[Array, Array]:
        monkeypatch.setattr(geometry, "primitives", lambda subject, scene: list(parts))
        images, masks = render.render([(world.subject(0, 0), scene)], size, samples)
        return images[0].transpose(1, 2, 0).astype(float), masks[0, 0].astype(float)

    return draw


def pairs(count: int, seed: int = 0) -> list[tuple[world.Subject, world.Scene]]:
    return [(world.subject(seed, i), world.scene(seed, i)) for i in range(count)]


# ---- closed forms


def test_the_silhouette_of_a_sphere_is_a_circle_of_the_projected_radius(draw_parts: DrawParts) -> None:
    """On the optical axis a sphere covers a cone of half angle asin(r / distance)."""
    size, radius = 256, 0.5
    centre = np.array(render.LOOK_AT)
    _, mask = draw_parts(sphere(centre, radius), size=size)
    distance = np.linalg.norm(centre - EYE)
    expected = math.tan(math.asin(radius / distance)) / render.HALF_FIELD * size / 2
    assert math.sqrt(mask.sum() / math.pi) == pytest.approx(expected, rel=0.005)
    rows, columns = np.nonzero(mask)
    assert rows.mean() == pytest.approx((size - 1) / 2, abs=0.2)
    assert columns.mean() == pytest.approx((size - 1) / 2, abs=0.2)


def test_a_sphere_off_the_axis_is_where_perspective_puts_it(draw_parts: DrawParts) -> None:
    centre, radius, size = np.array([0.6, 1.3, -0.5]), 0.3, 128
    _, mask = draw_parts(sphere(centre, radius), size=size)
    to_centre = (centre - EYE) / np.linalg.norm(centre - EYE)
    angle = np.arccos(rays(size) @ to_centre)
    border = math.asin(radius / np.linalg.norm(centre - EYE))
    clear = abs(angle - border) > 1e-4
    np.testing.assert_array_equal(mask[clear], (angle < border)[clear])
    assert mask[pixel_of(centre, size)] == 1


def test_a_lit_point_has_the_colour_of_the_shading_formula(draw_parts: DrawParts) -> None:
    """At the centre of a sphere's picture the normal points back at the eye."""
    colour, centre = (0.4, 0.3, 0.2), np.array(render.LOOK_AT)
    image, _ = draw_parts(sphere(centre, 0.5, colour), size=65)
    lambert = max(0.0, -axes()[2] @ SUN)
    assert lambert > 0.1
    expected = np.array(colour) * (render.AMBIENT + render.DIFFUSE * lambert)
    np.testing.assert_allclose(image[32, 32], expected, atol=0.003)


def test_a_sphere_throws_a_shadow_where_the_light_says(draw_parts: DrawParts) -> None:
    centre, size = np.array([0.3, 0.5, 0.8]), 128
    hit = centre - SUN * (centre[1] / SUN[1])
    place = pixel_of(hit, size)
    shadowed, _ = draw_parts(sphere(centre, 0.25), size=size)
    lit, _ = draw_parts(sphere(centre + [0, 9, 0], 0.25), size=size)
    np.testing.assert_allclose(shadowed[place], GREEN * render.AMBIENT, atol=1e-5)
    np.testing.assert_allclose(lit[place], GREEN * (render.AMBIENT + render.DIFFUSE * SUN[1]), atol=1e-5)


@pytest.mark.parametrize("near_first", [True, False])
@pytest.mark.parametrize("near_owner", [geometry.OF_SUBJECT, geometry.OF_SCENE])
def test_the_nearer_body_hides_the_farther(
    draw_parts: DrawParts, near_first: bool, near_owner: float
) -> None:
    """Whatever the order of the table; the mask says whose the visible surface is."""
    _, _, forward = axes()
    far = sphere(np.array(render.LOOK_AT), 0.5, (0.0, 0.9, 0.0), geometry.OF_SUBJECT)
    near = sphere(np.array(render.LOOK_AT) - forward, 0.2, (0.9, 0.0, 0.0), near_owner)
    image, mask = draw_parts(*((near, far) if near_first else (far, near)), size=65)
    red, green, _ = image[32, 32]
    assert red > 0.4 and green == 0
    assert mask[32, 32] == near_owner
    edge = pixel_of(far.centre + 0.4 * axes()[0], 65)
    assert image[edge][1] > 0.4 and image[edge][0] == 0
    assert mask[edge] == 1


def test_the_floor_hides_what_is_below_it(draw_parts: DrawParts) -> None:
    _, mask = draw_parts(sphere(np.array([0.0, -1.0, 0.0]), 0.5))
    assert not mask.any()


def inside(part: geometry.Primitive, points: Array) -> npt.NDArray[np.bool_]:
    """Whether points [..., 3] are in a body: an oracle that knows nothing of rays."""
    cos, sin = math.cos(part.yaw), math.sin(part.yaw)
    x, y, z = np.moveaxis(points - np.array(part.centre), -1, 0)
    a, b, c = (x * cos - z * sin) / part.half[0], y / part.half[1], (x * sin + z * cos) / part.half[2]
    if part.shape == geometry.ELLIPSOID:
        return a**2 + b**2 + c**2 <= 1
    if part.shape == geometry.BOX:
        return (abs(a) <= 1) & (abs(b) <= 1) & (abs(c) <= 1)
    if part.shape == geometry.CYLINDER:
        return (a**2 + c**2 <= 1) & (abs(b) <= 1)
    return (a**2 + c**2 <= (1 - b) ** 2) & (b >= 0) & (b <= 1)


def marched(part: geometry.Primitive, size: int, step: float = 0.004) -> npt.NDArray[np.bool_]:
    """March every ray through the body in small steps, [size, size]."""
    reach = np.linalg.norm(np.array(part.centre) - EYE)
    margin = math.hypot(*part.half)
    distances = np.arange(reach - margin, reach + margin, step)
    points = EYE + rays(size)[:, :, None, :] * distances[:, None]
    return inside(part, points).any(-1)


SHAPES = {"ellipsoid": geometry.ELLIPSOID, "box": geometry.BOX, "cylinder": geometry.CYLINDER}
SHAPES["cone"] = geometry.CONE


@pytest.mark.parametrize("shape", SHAPES)
def test_each_body_covers_the_pixels_whose_rays_pass_through_it(shape: str, draw_parts: DrawParts) -> None:
    """Against marching; a ray that grazes less than a step of the body may differ."""
    rng = random.Random(0)
    for _ in range(5):
        half = (rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.6))
        centre, yaw = (rng.uniform(-0.6, 0.6), 0.85, rng.uniform(-0.6, 0.6)), rng.uniform(-3, 3)
        part = geometry.Primitive(SHAPES[shape], centre, half, (0.5, 0.5, 0.5), yaw, geometry.OF_SUBJECT)
        _, mask = draw_parts(part, size=32)
        expected = marched(part, 32)
        assert expected.sum() > 10
        assert (mask != expected).sum() <= 2


# ---- what every picture promises


def test_pictures_and_masks_have_the_promised_shape_and_range() -> None:
    images, masks = render.render(pairs(32))
    assert images.shape == (32, 3, 64, 64) and masks.shape == (32, 1, 64, 64)
    assert images.dtype == masks.dtype == np.float32
    for values in (images, masks):
        assert np.isfinite(values).all()
        assert values.min() >= 0 and values.max() <= 1
    shares = masks.mean((1, 2, 3))
    assert shares.min() > 0.04 and shares.max() < 0.5


def test_the_mask_is_where_the_subject_shows() -> None:
    """Recolouring the toy changes masked pixels and no others; only its eyes are black whatever it is."""
    recolour = {
        "main_colour": (0.9, 0.1, 0.1),
        "limb_colour": (0.2, 0.9, 0.2),
    }
    original = pairs(24)
    images, masks = render.render(original)
    changed, same_masks = render.render(
        [(dataclasses.replace(s, **recolour), scene) for s, scene in original]
    )
    np.testing.assert_array_equal(masks, same_masks)
    differs = (images != changed).any(1, keepdims=True)
    assert not differs[masks == 0].any()
    unchanged = (masks == 1) & ~differs
    assert np.broadcast_to(unchanged, images.shape).sum() < 0.05 * 3 * masks.sum()
    assert images[np.broadcast_to(unchanged, images.shape)].max() <= geometry.BLACK[0] * 1.1


def test_props_are_outside_the_mask() -> None:
    other = dataclasses.replace(STUDIO, prop_colour="white")
    for index in range(12):
        toy = world.subject(0, index)
        images, masks = render.render([(toy, STUDIO), (toy, other)])
        np.testing.assert_array_equal(masks[0], masks[1])
        changed = (images[0] != images[1]).any(0)
        assert changed.sum() > 50
        assert not changed[masks[0, 0] == 1].any()


EMBLEM_PIXELS = 25  # of an emblem that differ by a twentieth and more, at least


@pytest.mark.parametrize("emblem", world.EMBLEMS)
def test_an_emblem_darkens_the_belly_and_nothing_else(emblem: str) -> None:
    for index in range(6):
        toy = dataclasses.replace(world.subject(0, index), emblem=emblem)
        plain = dataclasses.replace(toy, emblem=world.PLAIN)
        images, masks = render.render([(toy, STUDIO), (plain, STUDIO)])
        difference = images[1] - images[0]
        assert difference.min() > -1e-6
        assert (difference.max(0) > 0.05).sum() > EMBLEM_PIXELS
        assert not (difference > 0).any(0)[masks[0, 0] == 0].any()
        rows = np.nonzero((difference > 0).any(0))[0]
        assert rows.min() > 24  # below the head


def test_all_emblems_look_different() -> None:
    for index in range(6):
        toys = [dataclasses.replace(world.subject(0, index), emblem=emblem) for emblem in world.EMBLEMS]
        images, _ = render.render([(toy, STUDIO) for toy in toys])
        for first in range(len(toys)):
            for second in range(first):
                differs = (abs(images[first] - images[second]).max(0) > 0.05).sum()
                assert differs > 10, (world.EMBLEMS[first], world.EMBLEMS[second])


@pytest.mark.parametrize("prop", world.PROPS)
def test_left_and_right_are_left_and_right_in_the_picture(prop: str) -> None:
    """Found by recolouring the prop, which moves no shadow."""
    for index in range(6):
        toy = world.subject(0, index)
        for side in world.SIDES:
            scene = world.Scene(prop, "red", side, "green", "studio")
            images, _ = render.render([(toy, scene), (toy, dataclasses.replace(scene, prop_colour="blue"))])
            columns = np.nonzero((images[0] != images[1]).any(0))[1]
            assert len(columns) > 30
            assert (columns.mean() < 24) if side == "left" else (columns.mean() > 40)


def test_night_stays_readable() -> None:
    subjects = [world.subject(0, index) for index in range(32)]
    brightness = {}
    for sky in ("night", "studio"):
        images, masks = render.render([(toy, dataclasses.replace(STUDIO, sky=sky)) for toy in subjects])
        brightness[sky] = (images * masks).sum((1, 2, 3)) / (3 * masks.sum((1, 2, 3)))
    ratio = brightness["night"] / brightness["studio"]
    assert ratio.min() > 0.3 and ratio.max() < 0.9


@pytest.mark.parametrize("attribute", ["prop", "prop_colour", "side", "floor_colour", "sky"])
def test_every_attribute_shows(attribute: str) -> None:
    scene = dataclasses.replace(STUDIO, yaw=0.3)
    values = {"prop": world.PROPS, "side": world.SIDES, "sky": world.SKIES}.get(
        attribute, tuple(world.COLOURS)
    )
    images, _ = render.render(
        [(world.subject(0, 1), dataclasses.replace(scene, **{attribute: v})) for v in values]
    )
    for i in range(len(values)):
        for j in range(i):
            visibly = (abs(images[i] - images[j]).max(0) > 0.1).sum()
            assert visibly > 10, (values[i], values[j])


def test_a_second_view_is_another_picture() -> None:
    original = pairs(16)
    turned = [(toy, second_view(scene, 0, i)) for i, (toy, scene) in enumerate(original)]
    first, second = render.render(original)[0], render.render(turned)[0]
    assert (abs(first - second).max(1) > 0.1).mean((1, 2)).min() > 0.03


# ---- how it is computed


def test_a_picture_does_not_depend_on_its_batch_or_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    many = pairs(2 * render.CHUNK + 3)
    monkeypatch.setattr(render, "THREADS", 1)
    images, masks = render.render(many)
    monkeypatch.setattr(render, "THREADS", 3)
    for part, together in zip(render.render(many), (images, masks), strict=True):
        np.testing.assert_array_equal(part, together)
    for index in (0, render.CHUNK - 1, render.CHUNK, len(many) - 1):
        alone = render.render([many[index]])
        np.testing.assert_array_equal(alone[0][0], images[index])
        np.testing.assert_array_equal(alone[1][0], masks[index])


@pytest.mark.slow
def test_rendering_leaves_the_threads_of_torch_alone() -> None:
    """In a process of its own, as numba's parallel loops set the number once, where numba may use more."""
    program = (
        "import torch; from customized_grpo.toybox import render, world\n"
        "render.render([(world.subject(0, i), world.scene(0, i)) for i in range(40)])\n"
        "print(torch.get_num_threads())"
    )
    run = run_python("-c", program, NUMBA_NUM_THREADS="2")
    assert run.stdout.strip() == "1", run.stderr


@pytest.mark.parametrize(("setting", "threads"), [("2", 2), ("4,2", 4), ("", os.cpu_count())])
def test_threads_are_those_of_openmp(setting: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert render.allowed_threads() == threads


def test_supersampling_averages_the_finer_picture() -> None:
    fine, fine_mask = render.render(pairs(4), size=64, samples=1)
    coarse, coarse_mask = render.render(pairs(4), size=32, samples=2)
    for finer, coarser in ((fine, coarse), (fine_mask, coarse_mask)):
        averaged = torch.nn.functional.avg_pool2d(torch.from_numpy(finer), 2).numpy()
        np.testing.assert_allclose(coarser, averaged, atol=1e-6)


def test_no_pictures_make_an_empty_batch() -> None:
    images, masks = render.render([])
    assert images.shape == (0, 3, 64, 64) and masks.shape == (0, 1, 64, 64)


def test_a_place_without_a_cache_for_machine_code_compiles_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home and a package that cannot be written: numba refuses to cache, by raising."""
    compile_function = numba.njit

    def refuse_cache(**options: Any) -> Any:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available for file")
        return compile_function(**options)

    monkeypatch.setattr(numba, "njit", refuse_cache)

    @render._compiled()
    def add(a: float, b: float) -> float:
        return a + b

    assert add(1.0, 2.0) == 3.0
