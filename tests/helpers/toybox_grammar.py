"""Reads ToyBox prompts back, and turns toys: the inverse of the package's grammar, which only tests need."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Iterable

from customized_grpo.seeding import derive_seed
from customized_grpo.toybox.prompts import FLOOR_WORDS, OPENINGS, PROP_WORDS, SKY_WORDS
from customized_grpo.toybox.world import COLOURS, MAX_YAW, PROPS, SIDES, Scene


def _alternatives(words: Iterable[str]) -> str:
    """Return a pattern of any of the words, the longest first, since one may begin with another."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


_SKY_OF = {wording: sky for sky, wordings in SKY_WORDS.items() for wording in wordings}
_COLOUR = _alternatives(COLOURS)
_PROMPT = re.compile(
    rf"(?:{_alternatives(OPENINGS)})"
    rf" (?:{_alternatives(PROP_WORDS)}) (?P<prop_colour>{_COLOUR}) (?P<prop>{_alternatives(PROPS)})"
    rf" on the (?P<side>{_alternatives(SIDES)})"
    rf" (?:{_alternatives(FLOOR_WORDS)}) (?P<floor_colour>{_COLOUR}) floor"
    rf" (?P<sky>{_alternatives(_SKY_OF)})"
)


def parse_prompt(prompt: str) -> Scene:
    """Return the scene that a prompt describes, with yaw 0.

    Raises:
        ValueError: The text is not a sentence of the grammar.
    """
    match = _PROMPT.fullmatch(prompt)
    if match is None:
        raise ValueError(f"not a ToyBox prompt: {prompt!r}")
    words = match.groupdict()
    words["sky"] = _SKY_OF[words["sky"]]
    return Scene(**words)


def attributes(scene: Scene) -> dict[str, str]:
    """Return what a prompt says of a scene, by name: everything but the yaw."""
    values = dataclasses.asdict(scene)
    del values["yaw"]
    return values


def second_view(scene: Scene, seed: int, *keys: int | str) -> Scene:
    """Return the same scene with another yaw, at least a quarter radian away."""
    rng = random.Random(derive_seed(seed, "view", *keys))
    yaw = scene.yaw
    while math.isclose(yaw, scene.yaw, abs_tol=0.25):
        yaw = rng.uniform(-MAX_YAW, MAX_YAW)
    return dataclasses.replace(scene, yaw=yaw)
