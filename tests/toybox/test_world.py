from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.toybox import world
from toybox_grammar import attributes, second_view

SEEDS = st.integers(0, 2**62)


@given(seed=SEEDS, index=st.integers(0, 10_000))
def test_a_subject_is_a_function_of_seed_and_index(seed: int, index: int) -> None:
    assert world.subject(seed, index) == world.subject(seed, index)
    assert world.subject(seed, index) != world.subject(seed, index + 1)
    assert world.subject(seed, index) != world.subject(seed + 1, index)


@given(seed=SEEDS, index=st.integers(0, 10_000))
def test_a_scene_is_a_function_of_seed_and_keys(seed: int, index: int) -> None:
    assert world.scene(seed, "prompted", index) == world.scene(seed, "prompted", index)
    assert world.scene(seed, "prompted", index).yaw != world.scene(seed, "reference", index).yaw
    assert world.scene(seed, "prompted", index).yaw != world.scene(seed + 1, "prompted", index).yaw


def test_the_same_world_in_another_process() -> None:
    """Hash randomisation differs between processes, so nothing may depend on it."""
    program = "from customized_grpo.toybox import world; print(world.subject(0, 17), world.scene(0, 'a', 1))"
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == f"{world.subject(0, 17)} {world.scene(0, 'a', 1)}"


def test_every_subject_is_another() -> None:
    subjects = {world.subject(0, index) for index in range(2000)}
    assert len(subjects) == 2000
    for field, values in (("body", world.BODIES), ("ears", world.EARS), ("emblem", world.EMBLEMS)):
        assert {getattr(subject, field) for subject in subjects} == set(values)


@given(seed=SEEDS, index=st.integers(0, 10_000))
def test_unlike_scenes_share_no_floor_no_sky_and_no_prop(seed: int, index: int) -> None:
    """Nothing but the side of the prop can be equal, so that it is clear which scene an image shows."""
    first = world.scene(seed, index)
    other = world.scene_unlike(first, seed, index)
    assert other == world.scene_unlike(first, seed, index)
    for name in ("prop", "prop_colour", "floor_colour", "sky"):
        assert getattr(first, name) != getattr(other, name)


def test_unlike_scenes_are_drawn_evenly_from_the_others() -> None:
    first = world.scene(0, 0)
    skies = [world.scene_unlike(first, 0, index).sky for index in range(1500)]
    for sky in set(world.SKIES) - {first.sky}:
        assert abs(skies.count(sky) - 500) < 5 * (1500 * (1 / 3) * (2 / 3)) ** 0.5


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        ("prop", world.PROPS),
        ("side", world.SIDES),
        ("floor_colour", tuple(world.COLOURS)),
        ("sky", world.SKIES),
    ],
)
def test_attributes_are_drawn_evenly(attribute: str, values: tuple[str, ...]) -> None:
    """Within five standard errors of a binomial count."""
    count = 2000
    drawn = [getattr(world.scene(0, index), attribute) for index in range(count)]
    expected, error = count / len(values), (count * (1 / len(values)) * (1 - 1 / len(values))) ** 0.5
    for value in values:
        assert abs(drawn.count(value) - expected) < 5 * error


@given(seed=SEEDS, index=st.integers(0, 10_000))
def test_a_second_view_changes_the_yaw_alone(seed: int, index: int) -> None:
    first = world.scene(seed, index)
    second = second_view(first, seed, index)
    assert attributes(second) == attributes(first)
    assert abs(second.yaw - first.yaw) >= 0.25
    assert abs(second.yaw) <= world.MAX_YAW
    assert second == second_view(first, seed, index)
