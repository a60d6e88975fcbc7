from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from comparison_results import comparison
from customized_grpo.pages.comparison_data import read_comparison
from customized_grpo.pages.comparison_images import MAX_ROWS, arm_images
from customized_grpo.pages.comparison_page import render_comparison_page
from customized_grpo.pages.sample_images import read_samples
from customized_grpo.reporting.images import SampleRow, save_samples, start_samples
from html_page import Page

ITERATIONS = (0, 30, 60)
Folders = Mapping[tuple[str, int], Path]


def draw(folder: Path, rows: int = 2, iterations: tuple[int, ...] = ITERATIONS) -> None:
    """Write the images of a run: all pixels of an image are iteration / 100."""
    blank = torch.zeros(3, 4, 4)
    prompts = [SampleRow(f"prompt {row}", [blank], f"toy {row}") for row in range(rows)]
    start_samples(folder / "samples", prompts)
    for iteration in iterations:
        save_samples(folder / "samples", iteration, torch.full((rows, 3, 4, 4), iteration / 100))


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    found = {}
    for arm in comparison()["arms"]:
        for seed in (0, 1):
            found[arm["name"], seed] = tmp_path / arm["name"] / f"seed_{seed}"
    draw(found["naive-0.5", 1])
    draw(found["customized-grpo", 1])
    return found


def two_arms(**options: Any) -> dict[str, Any]:
    arms = [arm for arm in comparison()["arms"] if arm["name"] in ("naive-0.5", "customized-grpo")]
    return comparison(arms, seeds=2, **options)


def test_arms_of_one_seed_stand_beside_reference_and_base(tmp_path: Path, folders: Folders) -> None:
    for name in ("naive-0.5", "customized-grpo"):
        draw(folders[name, 0], rows=MAX_ROWS + 1)
    images = arm_images(read_comparison(two_arms()), folders)
    assert images is not None and images.seed == 0 and not images.problems
    assert [arm.name for arm, _ in images.arms] == ["naive-0.5", "customized-grpo"]
    assert [prompt.prompt for prompt in images.prompts] == [f"prompt {row}" for row in range(MAX_ROWS)]
    samples = read_samples(folders["naive-0.5", 0] / "samples")
    assert samples is not None
    assert [images.prompts[1].reference, images.prompts[1].base, images.prompts[1].tuned] == [
        samples.reference(1),
        samples.drawn(1, 0),
        samples.drawn(1, 60),
    ]
    seen = Page(render_comparison_page(two_arms(), folders))
    # before any table, and the first prompts in sight
    assert seen.headings[1] == "What the arms draw" and "prompt 1" in seen.text
    assert f"{MAX_ROWS - 4} more prompts" in seen.text


def test_the_seed_is_the_one_that_most_arms_finished(folders: Folders) -> None:
    results = two_arms(finished={"naive-0.5": 2, "customized-grpo": 2})
    for run in results["runs"]:
        if run["arm"] == "naive-0.5" and run["seed"] == 0:
            run["state"] = "unfinished"
    images = arm_images(read_comparison(results), folders)
    assert images is not None and images.seed == 1 and len(images.arms) == 2


def test_a_damaged_image_costs_its_arm_and_is_said(folders: Folders) -> None:
    for name in ("naive-0.5", "customized-grpo"):
        draw(folders[name, 0])
    file = folders["customized-grpo", 0] / "samples/iteration_000060/01.png"
    file.write_bytes(file.read_bytes()[:40])
    page = Page(render_comparison_page(two_arms(), folders))
    assert f"Customized-GRPO: {file} cannot be read as PNG" in page.text
    images = arm_images(read_comparison(two_arms()), folders)
    assert images is not None and [arm.name for arm, _ in images.arms] == ["naive-0.5"]


def test_without_runs_or_images_the_section_is_left_out(folders: Folders) -> None:
    assert arm_images(read_comparison(two_arms()), {}) is None
    assert arm_images(read_comparison(two_arms()), folders) is None  # seed 0 has finished and drew nothing
    nothing = two_arms(finished={"naive-0.5": 0, "customized-grpo": 0})
    assert arm_images(read_comparison(nothing), folders) is None
