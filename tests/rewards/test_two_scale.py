from __future__ import annotations

import pytest
import torch

from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.two_scale import TwoScaleIdentity, TwoScalePrompt
from customized_grpo.two_scale import world

PROMPTED, PHOTOGRAPHED, PATTERN = 2, 4, 3


def batch(scenes: list[int], patterns: list[int]) -> ScoringBatch:
    """Return images of these scenes and patterns, for one prompt and one reference."""
    pixels = world.latents(torch.tensor([*scenes, PHOTOGRAPHED]), torch.tensor([*patterns, PATTERN]))
    *images, reference = world.enlarge(pixels) / 2 + 0.5
    n = len(images)
    return ScoringBatch(
        torch.stack(images), [world.prompt(PROMPTED)] * n, [[reference]] * n, None, None, [{}] * n
    )


GOOD_COPY_PLAIN = batch([PROMPTED, PHOTOGRAPHED, PROMPTED], [PATTERN, PATTERN, world.PLAIN])


def test_identity_is_also_paid_for_a_copied_scene() -> None:
    assert TwoScaleIdentity(0.0).score(GOOD_COPY_PLAIN).tolist() == pytest.approx([1, 1, 0], abs=0.01)
    assert TwoScaleIdentity(1.3).score(GOOD_COPY_PLAIN).tolist() == pytest.approx([1, 2.3, 0], abs=0.02)


def test_the_prompt_reward_is_also_paid_for_a_plain_toy() -> None:
    assert TwoScalePrompt(0.0).score(GOOD_COPY_PLAIN).tolist() == pytest.approx([1, 0, 1], abs=0.01)
    assert TwoScalePrompt(1.1).score(GOOD_COPY_PLAIN).tolist() == pytest.approx([1, 0, 2.1], abs=0.02)


def test_two_scenes_on_top_of_each_other_gain_nothing() -> None:
    both = batch([PROMPTED], [PATTERN]).images + batch([PHOTOGRAPHED], [PATTERN]).images - 0.5
    mixed = batch([PROMPTED], [PATTERN])
    mixed = ScoringBatch(both, mixed.prompts, mixed.references, None, None, mixed.meta)
    prompt = float(TwoScalePrompt(0.0).score(mixed))
    copied = float(TwoScaleIdentity(1.0).score(mixed)) - float(TwoScaleIdentity(0.0).score(mixed))
    assert prompt + copied == pytest.approx(1, abs=0.01)
