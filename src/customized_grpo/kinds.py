"""The kinds of reward, and their order wherever several stand side by side."""

from __future__ import annotations

from collections.abc import Iterable

PAIR = ("prompt", "identity")
"""The two kinds that a combination rule makes one advantage of, in the order of every tensor with K = 2."""

KINDS = (*PAIR, "quality")
"""Every kind; the advantage of quality is added to that of the pair (`algorithms.rules.combine`)."""


def kinds_of(rewards: Iterable[str]) -> tuple[str, ...]:
    """Return the different kinds among those of K rewards, in the order of `KINDS`."""
    present = set(rewards)
    return tuple(kind for kind in KINDS if kind in present)
