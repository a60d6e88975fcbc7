"""The prompt grammar: `to_prompt` and `parse_prompt` are exact inverses on every attribute.

A prompt has a fixed order of clauses but several wordings of each, so a text encoder has to read it rather
than to look at positions.
"""

from __future__ import annotations

import itertools
import random
import re

from customized_grpo.toybox.world import COLOURS, FLOORS, HATS, PROPS, SIDES, Scene

OPENINGS = ("a toy", "this toy", "our toy")
HAT_WORDS = ("wearing a", "in a")
PROP_WORDS = ("with a", "beside a")
FLOOR_WORDS = ("on a", "upon a")
SKY_WORDS: dict[str, tuple[str, ...]] = {
    "morning": ("in the morning", "at dawn"),
    "night": ("at night", "after dark"),
    "sunset": ("at sunset", "at dusk"),
    "studio": ("in a studio", "in the studio"),
}
_SIDE = "on the"


def _alternatives(words: tuple[str, ...]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


_COLOUR = _alternatives(tuple(COLOURS))
_PROMPT = re.compile(
    rf"(?:{_alternatives(OPENINGS)})"
    rf"(?: (?:{_alternatives(HAT_WORDS)}) (?P<hat_colour>{_COLOUR}) (?P<hat>{_alternatives(HATS[1:])}))?"
    rf"(?: (?:{_alternatives(PROP_WORDS)}) (?P<prop_colour>{_COLOUR}) (?P<prop>{_alternatives(PROPS[1:])})"
    rf" {_SIDE} (?P<side>{_alternatives(SIDES)}))?"
    rf" (?:{_alternatives(FLOOR_WORDS)}) (?P<floor>{_alternatives(FLOORS)}) (?P<floor_colour>{_COLOUR}) floor"
    rf" (?P<sky>{_alternatives(tuple(itertools.chain(*SKY_WORDS.values())))})"
)
_SKY_OF = {word: sky for sky, words in SKY_WORDS.items() for word in words}


def to_prompt(scene: Scene, rng: random.Random | None = None) -> str:
    """Word a scene; without `rng` the first (canonical) wording of every clause is used."""

    def pick(words: tuple[str, ...]) -> str:
        return words[0] if rng is None else rng.choice(words)

    clauses = [pick(OPENINGS)]
    if scene.hat != "none":
        clauses.append(f"{pick(HAT_WORDS)} {scene.hat_colour} {scene.hat}")
    if scene.prop != "none":
        clauses.append(f"{pick(PROP_WORDS)} {scene.prop_colour} {scene.prop} {_SIDE} {scene.side}")
    clauses.append(f"{pick(FLOOR_WORDS)} {scene.floor} {scene.floor_colour} floor")
    clauses.append(pick(SKY_WORDS[scene.sky]))
    return " ".join(clauses)


def parse_prompt(prompt: str) -> Scene:
    """Read the attributes back (yaw 0).

    Raises:
        ValueError: if the text is not a sentence of this grammar.
    """
    match = _PROMPT.fullmatch(prompt)
    if match is None:
        raise ValueError(f"not a ToyBox prompt: {prompt!r}")
    found = match.groupdict()
    return Scene(
        hat=found["hat"] or "none",
        hat_colour=found["hat_colour"],
        prop=found["prop"] or "none",
        prop_colour=found["prop_colour"],
        side=found["side"],
        floor=found["floor"],
        floor_colour=found["floor_colour"],
        sky=_SKY_OF[found["sky"]],
    )


def vocabulary() -> list[str]:
    """Return every word of the grammar, sorted."""
    phrases: list[str] = [*OPENINGS, *HAT_WORDS, *PROP_WORDS, *FLOOR_WORDS, _SIDE, "floor", *COLOURS]
    phrases += [*HATS[1:], *PROPS[1:], *SIDES, *FLOORS, *_SKY_OF]
    return sorted({word for phrase in phrases for word in phrase.split()})


def paraphrase(scene: Scene, seed: int) -> str:
    """Word a scene in one of the many possible ways, chosen by the seed."""
    return to_prompt(scene, random.Random(seed))
