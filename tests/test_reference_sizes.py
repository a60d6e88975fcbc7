"""Sizes of references by rule: those of the published pipelines, and none that distorts a photo much."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers.pipelines.flux import pipeline_flux_kontext as kontext
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as qwen
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from customized_grpo.reference_sizes import (
    KONTEXT_SIZES,
    ReferenceSize,
    changed_aspect,
    largest_reference,
    reference_size,
)

SIDE = st.integers(32, 3000)
RULES: tuple[ReferenceSize, ...] = ("kontext", "uno", "flux2", "qwen_edit", "image", 512)


def is_usual(width: int, height: int) -> bool:
    return max(width, height) <= 8 * min(width, height)


@settings(max_examples=200, deadline=None)
@given(SIDE, SIDE)
def test_sizes_are_those_of_the_published_pipelines(width: int, height: int) -> None:
    if not is_usual(width, height):
        return
    aspect = width / height
    _, w, h = min((abs(aspect - w / h), w, h) for w, h in kontext.PREFERRED_KONTEXT_RESOLUTIONS)
    assert reference_size((width, height), "kontext", 1, (512, 512)) == (w, h)
    expected = qwen.calculate_dimensions(qwen.VAE_IMAGE_SIZE, aspect)
    assert reference_size((width, height), "qwen_edit", 1, (512, 512)) == expected
    flux2 = reference_size((width, height), "flux2", 1, (512, 512))
    small = Image.new("L", (width, height))
    if width * height > 1024 * 1024:
        small = Flux2ImageProcessor._resize_to_target_area(small, 1024 * 1024)
    assert flux2 == (small.width // 16 * 16, small.height // 16 * 16)


@pytest.mark.parametrize("rule", ["image", 512])
def test_sides_are_multiples_of_what_a_model_needs(rule: ReferenceSize) -> None:
    assert reference_size((300, 200), rule, 1, (512, 512)) == (624, 416)
    assert reference_size((300, 200), rule, 1, (512, 512), 32) == (640, 416)
    assert largest_reference(rule, 1, (528, 496), 32)[0] % 32 == 0


def test_the_sizes_of_kontext_are_the_pipelines() -> None:
    assert list(KONTEXT_SIZES) == kontext.PREFERRED_KONTEXT_RESOLUTIONS


@pytest.mark.parametrize(
    ("rule", "n_references", "size"),
    [
        ("kontext", 1, (1248, 832)),
        ("uno", 1, (512, 336)),
        ("uno", 2, (320, 208)),
        ("flux2", 1, (1248, 832)),
        ("qwen_edit", 1, (1248, 832)),
        ("image", 1, (624, 416)),
        (1024, 1, (1248, 832)),
    ],
)
def test_a_photo_of_three_to_two_keeps_its_aspect(
    rule: Any, n_references: int, size: tuple[int, int]
) -> None:
    found = reference_size((1536, 1024), rule, n_references, (512, 512))
    assert found == size
    assert changed_aspect((1536, 1024), found) < 0.03


def test_a_small_photo_keeps_its_size_where_the_pipeline_keeps_it() -> None:
    assert reference_size((640, 400), "flux2", 1, (512, 512)) == (640, 400)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60_000), st.integers(1, 60_000), st.sampled_from(RULES))
def test_every_photo_gets_whole_tokens_and_bounded_memory(
    width: int, height: int, rule: ReferenceSize
) -> None:
    found = reference_size((width, height), rule, 1, (512, 512))
    assert all(side >= 16 and side % 16 == 0 for side in found)
    assert found[0] * found[1] <= 1.2 * 1024 * 1024


def test_the_largest_reference_is_what_a_plan_counts() -> None:
    sizes = [largest_reference(rule, 1, (512, 512)) for rule in RULES]
    assert sizes == [(1024, 1024), (512, 512), (1024, 1024), (1024, 1024), (512, 512), (512, 512)]


def test_a_size_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        reference_size((0, 5), "flux2", 1, (512, 512))
