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
    subject = dataclasses.replace(world.subject(0, 0), ears="tall")
    scene = world.Scene("ball", "blue", "left", "red", "night")
    assert len(geometry.primitives(subject, scene)) == 10 <= geometry.MAX_PRIMITIVES


@given(seed=SEEDS)
def test_the_prop_alone_is_not_of_the_subject(seed: int) -> None:
    parts = geometry.primitives(world.subject(seed, 0), world.scene(seed, 0))
    assert [part.owner for part in parts] == [geometry.OF_SUBJECT] * (len(parts) - 1) + [geometry.OF_SCENE]


@given(seed=SEEDS)
def test_the_emblem_is_on_the_body_and_changes_nothing_else(seed: int) -> None:
    subject, scene = world.subject(seed, 0), world.scene(seed, 0)
    parts = geometry.primitives(subject, scene)
    plain = geometry.primitives(dataclasses.replace(subject, emblem=world.PLAIN), scene)
    assert [part.emblem for part in parts] == [subject.emblem] + [world.PLAIN] * (len(parts) - 1)
    assert plain[1:] == parts[1:]
    assert plain[0] == dataclasses.replace(parts[0], emblem=world.PLAIN)


@given(seed=SEEDS)
def test_the_toy_stands_on_the_floor(seed: int) -> None:
    """Only the feet reach into it, by their round undersides: less than a tenth of a unit."""
    parts = geometry.primitives(world.subject(seed, 0), world.scene(seed, 0))
    lowest = [part.centre[1] - (0 if part.shape == geometry.CONE else part.half[1]) for part in parts]
    assert -0.1 < min(lowest) <= 0
    assert sum(low <= 0 for low in lowest[:-1]) == 2


@given(seed=SEEDS, yaw=st.floats(-world.MAX_YAW, world.MAX_YAW))
def test_yaw_turns_the_toy_as_a_whole_and_no_prop(seed: int, yaw: float) -> None:
    """Distances between parts stay, so does the axis through the origin."""
    subject, scene = world.subject(seed, 0), world.scene(seed, 0)
    still = geometry.primitives(subject, dataclasses.replace(scene, yaw=0.0))
    turned = geometry.primitives(subject, dataclasses.replace(scene, yaw=yaw))
    rotation = np.array([[math.cos(yaw), math.sin(yaw)], [-math.sin(yaw), math.cos(yaw)]])
    for before, after in zip(still, turned, strict=True):
        is_prop = before is still[-1]
        plane = np.array([before.centre[0], before.centre[2]])
        expected = plane if is_prop else rotation @ plane
        np.testing.assert_allclose([after.centre[0], after.centre[2]], expected, atol=1e-12)
        assert after.centre[1] == before.centre[1]
        assert after.yaw == (0.0 if is_prop else yaw)


def test_left_and_right_are_mirrored() -> None:
    scene = world.Scene("box", "blue", "left", "red", "night")
    left = geometry.primitives(world.subject(0, 0), scene)[-1]
    right = geometry.primitives(world.subject(0, 0), dataclasses.replace(scene, side="right"))[-1]
    assert left.centre == (-right.centre[0], *right.centre[1:])
    assert left.centre[0] < 0
