from __future__ import annotations

import dataclasses
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.toybox import geometry, world

SEEDS = st.integers(0, 2**62)


@given(seed=SEEDS)
def test_every_picture_fits_the_table(seed: int) -> None:
    subject, scene = world.subject(seed, 0), world.scene(seed, 0)
    parts = geometry.primitives(subject, scene)
    rows, counts, backdrops = geometry.tables([(subject, scene)])
    assert counts.tolist() == [len(parts)]
    assert rows.shape == (1, geometry.MAX_PRIMITIVES, geometry.COLUMNS)
    assert backdrops.shape == (1, geometry.BACKDROP_COLUMNS)
    assert not rows[0, len(parts) :].any()


def test_the_richest_toy_fits_the_table() -> None:
    subject = dataclasses.replace(world.subject(0, 0), ears="tall", tail="stub")
    scene = world.Scene("top hat", "red", "ball", "blue", "left", "plain", "red", "night")
    assert len(geometry.primitives(subject, scene)) == 15 <= geometry.MAX_PRIMITIVES


@given(seed=SEEDS)
def test_hat_and_prop_are_not_of_the_subject(seed: int) -> None:
    subject, scene = world.subject(seed, 0), world.scene(seed, 0)
    bare = dataclasses.replace(scene, hat="none", hat_colour=None, prop="none", prop_colour=None, side=None)
    extra = {"none": 0, "party hat": 1, "top hat": 2, "halo": 1}[scene.hat] + (scene.prop != "none")
    parts = geometry.primitives(subject, scene)
    assert [part for part in parts if part.owner == geometry.OF_SUBJECT] == geometry.primitives(subject, bare)
    assert sum(part.owner == geometry.OF_SCENE for part in parts) == extra


@given(seed=SEEDS)
def test_the_toy_stands_on_the_floor(seed: int) -> None:
    """No part reaches below it, and the legs touch it."""
    parts = geometry.primitives(world.subject(seed, 0), world.scene(seed, 0))
    feet = [p.centre[1] - (0 if p.shape == geometry.CONE else p.half[1]) for p in parts]
    assert min(feet) > -1e-9
    assert sum(math.isclose(foot, 0, abs_tol=1e-9) for foot in feet) >= 4


@given(seed=SEEDS, yaw=st.floats(-world.MAX_YAW, world.MAX_YAW))
def test_yaw_turns_the_toy_as_a_whole_and_no_prop(seed: int, yaw: float) -> None:
    """Distances between parts stay, so does the axis through the origin."""
    subject, scene = world.subject(seed, 0), world.scene(seed, 0)
    still = geometry.primitives(subject, dataclasses.replace(scene, yaw=0.0))
    turned = geometry.primitives(subject, dataclasses.replace(scene, yaw=yaw))
    rotation = np.array([[math.cos(yaw), math.sin(yaw)], [-math.sin(yaw), math.cos(yaw)]])
    for before, after in zip(still, turned, strict=True):
        is_prop = scene.prop != "none" and before is still[-1]
        plane = np.array([before.centre[0], before.centre[2]])
        expected = plane if is_prop else rotation @ plane
        np.testing.assert_allclose([after.centre[0], after.centre[2]], expected, atol=1e-12)
        assert after.centre[1] == before.centre[1]
        assert after.yaw == (0.0 if is_prop else yaw)


def test_left_and_right_are_mirrored() -> None:
    scene = world.Scene("none", None, "box", "blue", "left", "plain", "red", "night")
    left = geometry.primitives(world.subject(0, 0), scene)[-1]
    right = geometry.primitives(world.subject(0, 0), dataclasses.replace(scene, side="right"))[-1]
    assert left.centre == (-right.centre[0], *right.centre[1:])
    assert left.centre[0] < 0
