"""The grammar of prompts: a sentence names every attribute of a scene, and nothing else.

The order of the clauses is fixed, but each has several wordings, so that a text encoder has to read a prompt
instead of looking at positions.
"""

from __future__ import annotations

import random

from customized_grpo.toybox.world import COLOURS, PROPS, SIDES, Scene

OPENINGS = ("a toy", "this toy", "our toy")
PROP_WORDS = ("with a", "beside a")
FLOOR_WORDS = ("on a", "upon a")
SKY_WORDS: dict[str, tuple[str, ...]] = {
    "morning": ("in the morning", "at dawn"),
    "night": ("at night", "after dark"),
    "sunset": ("at sunset", "at dusk"),
    "studio": ("in a studio", "in the studio"),
}
_SIDE = "on the"


def to_prompt(scene: Scene, rng: random.Random | None = None) -> str:
    """Return a scene as a sentence.

    Args:
        scene: The scene.
        rng: Chooses the wording of every clause; None takes the first (canonical) one.
    """

    def pick(words: tuple[str, ...]) -> str:
        return words[0] if rng is None else rng.choice(words)

    clauses = [
        pick(OPENINGS),
        f"{pick(PROP_WORDS)} {scene.prop_colour} {scene.prop} {_SIDE} {scene.side}",
        f"{pick(FLOOR_WORDS)} {scene.floor_colour} floor",
        pick(SKY_WORDS[scene.sky]),
    ]
    return " ".join(clauses)


def vocabulary() -> list[str]:
    """Return every word of the grammar, sorted."""
    phrases: list[str] = [*OPENINGS, *PROP_WORDS, *FLOOR_WORDS, _SIDE, "floor", *COLOURS, *PROPS, *SIDES]
    for wordings in SKY_WORDS.values():
        phrases += wordings
    return sorted(set(" ".join(phrases).split()))


def paraphrase(scene: Scene, seed: int) -> str:
    """Return a scene as a sentence, in the wording that the seed chooses."""
    return to_prompt(scene, random.Random(seed))
