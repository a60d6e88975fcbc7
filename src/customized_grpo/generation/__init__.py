"""Images without training: one way to open a generator, and one way to draw from it."""

from __future__ import annotations

from customized_grpo.generation.drawing import draw
from customized_grpo.generation.opening import Generator, open_generator

__all__ = ["Generator", "draw", "open_generator"]
