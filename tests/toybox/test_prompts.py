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
    return world.Scene(
        prop=draw(st.sampled_from(world.PROPS)),
        prop_colour=draw(COLOURS),
        side=draw(st.sampled_from(world.SIDES)),
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
    scene = world.Scene("ball", "blue", "left", "green", "night")
    assert prompts.to_prompt(scene) == "a toy with a blue ball on the left on a green floor at night"


def test_every_wording_of_every_clause_is_used() -> None:
    scene = world.Scene("cone", "white", "right", "red", "sunset")
    said = [prompts.to_prompt(scene, random.Random(seed)) for seed in range(300)]
    clauses = (prompts.OPENINGS, prompts.PROP_WORDS, prompts.FLOOR_WORDS)
    for word in (*[word for words in clauses for word in words], *prompts.SKY_WORDS["sunset"]):
        assert any(f" {word} " in f" {sentence} " for sentence in said), word
    assert len(set(said)) > 20  # of 3 x 2 x 2 x 2 = 24


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a toy",
        "a toy with a blue ball on the left at night",
        "a toy on a red floor at night",
        "a toy with a blue ball on the left on a red floor",
        "a toy with a blue ball on the left on a red floor at noon",
        "a toy with a blue ball on the left on a mauve floor at night",
        "A toy with a blue ball on the left on a red floor at night",
        " a toy with a blue ball on the left on a red floor at night",
        "a toy with a blue ball on the left on a red floor at night ",
        "a toy with a blue ball on the left on a red floor at night\n",
        "a toy with a blue ball on the left on a red floor at night and more",
        "a toy  with a blue ball on the left on a red floor at night",
        "a toy with a ball on the left on a red floor at night",
        "a toy with a blue ball on a red floor at night",
        "a toy on a red floor with a blue ball on the left at night",
    ],
)
def test_what_is_no_sentence_of_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a ToyBox prompt"):
        parse_prompt(text)


@given(scene=scenes(), seed=st.integers(0, 2**62))
def test_the_vocabulary_holds_every_word_of_every_sentence(scene: world.Scene, seed: int) -> None:
    assert set(prompts.paraphrase(scene, seed).split()) <= set(prompts.vocabulary())
