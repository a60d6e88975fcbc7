from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.toybox import prompts, world
from toybox_grammar import parse_prompt, second_view

COLOURS = st.sampled_from(list(world.COLOURS))


@st.composite
def scenes(draw: st.DrawFn) -> world.Scene:
    hat, prop = draw(st.sampled_from(world.HATS)), draw(st.sampled_from(world.PROPS))
    return world.Scene(
        hat=hat,
        hat_colour=None if hat == "none" else draw(COLOURS),
        prop=prop,
        prop_colour=None if prop == "none" else draw(COLOURS),
        side=None if prop == "none" else draw(st.sampled_from(world.SIDES)),
        floor=draw(st.sampled_from(world.FLOORS)),
        floor_colour=draw(COLOURS),
        sky=draw(st.sampled_from(world.SKIES)),
        yaw=draw(st.floats(-world.MAX_YAW, world.MAX_YAW)),
    )


@given(scene=scenes(), seed=st.integers(0, 2**62))
def test_parsing_undoes_every_wording(scene: world.Scene, seed: int) -> None:
    expected = dataclasses.replace(scene, yaw=0.0)
    assert parse_prompt(prompts.to_prompt(scene)) == expected
    assert parse_prompt(prompts.paraphrase(scene, seed)) == expected


@given(scene=scenes(), seed=st.integers(0, 2**62))
def test_a_paraphrase_is_a_function_of_the_seed(scene: world.Scene, seed: int) -> None:
    assert prompts.paraphrase(scene, seed) == prompts.paraphrase(scene, seed)


def test_the_yaw_is_never_said() -> None:
    scene = world.scene(0, 0)
    assert prompts.to_prompt(scene) == prompts.to_prompt(second_view(scene, 0))


def test_the_canonical_sentence() -> None:
    scene = world.Scene("party hat", "red", "ball", "blue", "left", "checkered", "green", "night")
    assert prompts.to_prompt(scene) == (
        "a toy wearing a red party hat with a blue ball on the left on a checkered green floor at night"
    )


def test_every_wording_of_every_clause_is_used() -> None:
    scene = world.Scene("halo", "pink", "cone", "white", "right", "plain", "red", "sunset")
    said = [prompts.to_prompt(scene, random.Random(seed)) for seed in range(300)]
    clauses = (prompts.OPENINGS, prompts.HAT_WORDS, prompts.PROP_WORDS, prompts.FLOOR_WORDS)
    for word in (*[word for words in clauses for word in words], *prompts.SKY_WORDS["sunset"]):
        assert any(f" {word} " in f" {sentence} " for sentence in said), word
    assert len(set(said)) > 40  # of 3 x 2 x 2 x 2 x 2 = 48


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a toy",
        "a toy at night",
        "a toy on a plain red floor",
        "a toy on a plain red floor at noon",
        "a toy on a plain mauve floor at night",
        "A toy on a plain red floor at night",
        " a toy on a plain red floor at night",
        "a toy on a plain red floor at night ",
        "a toy on a plain red floor at night\n",
        "a toy on a plain red floor at night and more",
        "a toy  on a plain red floor at night",
        "a toy wearing a hat on a plain red floor at night",
        "a toy with a blue ball on a plain red floor at night",
        "a toy with a blue ball on the left wearing a red halo on a plain red floor at night",
    ],
)
def test_what_is_no_sentence_of_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a ToyBox prompt"):
        parse_prompt(text)


@given(scene=scenes(), seed=st.integers(0, 2**62))
def test_the_vocabulary_holds_every_word_of_every_sentence(scene: world.Scene, seed: int) -> None:
    assert set(prompts.paraphrase(scene, seed).split()) <= set(prompts.vocabulary())
