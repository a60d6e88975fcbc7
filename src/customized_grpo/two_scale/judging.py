"""The judges of the world of two scales, which are exact: they look up the code that an image shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from customized_grpo.data.examples import Example
from customized_grpo.two_scale import world


class TwoScaleJudges:
    """Judges that no reward shares anything with but the image.

    Columns (each [B], fp32, 1 or 0):
        judge/prompt: The scene is the prompted one.
        judge/identity: The pattern is the reference's.
        monitor/copy_score: The scene is the reference's.
        mode/good, copied, drift, other: Both are right; the scene is the reference's; the scene is right and
            the pattern is not; none of these.
    """

    def columns(self, images: Tensor, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Judge images [B, 3, H, W] in [0, 1], one per example."""
        scene, pattern = world.halves(world.shrink(images.cpu()))
        # from similarities to indexes of world.SCENES: the nearest scene counts, however faint it is
        shown_scene = world.similarities(scene).argmax(1)
        identity = world.similarities(pattern).argmax(1) == _meta(examples, "pattern")
        prompt = shown_scene == _meta(examples, "prompted")
        copied = shown_scene == _meta(examples, "photographed")
        columns = {
            "judge/prompt": prompt,
            "judge/identity": identity,
            "monitor/copy_score": copied,
            "mode/good": prompt & identity,
            "mode/copied": copied,
            "mode/drift": prompt & ~identity,
            "mode/other": ~prompt & ~copied,
        }
        return {name: values.float() for name, values in columns.items()}


def _meta(examples: Sequence[Example], key: str) -> Tensor:
    return torch.tensor([example.meta[key] for example in examples])
