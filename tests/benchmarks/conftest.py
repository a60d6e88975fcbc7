"""Photos and rows for the tests of benchmarks, drawn here: no photo of anybody is needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.benchmarks.rows import BenchmarkRow

MakePhoto = Callable[..., Path]

PROMPTS = """Classes

subject_name,class
dog6,dog
teapot,teapot
fancy_boot,boot

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
'a {0} {1} in a chef outfit'.format(unique_token, class_token),
'a wet {0} {1}'.format(unique_token, class_token)
]
"""


@pytest.fixture
def photo() -> MakePhoto:
    """Write a picture of one colour with a darker middle."""

    def make(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (48, 40)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", size, colour)
        image.paste((colour[0] // 2, colour[1] // 3, colour[2] // 4), (12, 10, 36, 30))
        image.save(path)
        return path

    return make


@pytest.fixture
def dreambench(tmp_path: Path, photo: MakePhoto) -> Path:
    """Three subjects in the layout of DreamBooth's repository."""
    root = tmp_path / "dreambooth"
    for k, name in enumerate(("dog6", "teapot", "fancy_boot")):
        for n in range(2 + k):
            photo(root / "dataset" / name / f"{n:02d}.jpg", (200 - 60 * k, 40 + 70 * k, 30 + 50 * n))
    (root / "dataset" / "prompts_and_classes.txt").write_text(PROMPTS)
    return root


@pytest.fixture(scope="session")
def dreambooth_photos() -> Path:
    """The real photos; CGRPO_DREAMBENCH names their folder."""
    folder = os.environ.get("CGRPO_DREAMBENCH")
    if folder is None:
        pytest.skip("CGRPO_DREAMBENCH does not name the folder of DreamBooth's photos")
    return Path(folder)


@pytest.fixture
def rows(tmp_path: Path, photo: MakePhoto) -> list[BenchmarkRow]:
    """Three rows about three subjects; ids that are no file names."""
    made = []
    for n, name in enumerate(("a/b", "..", "x" * 300)):
        reference = photo(tmp_path / "photos" / f"{n}.png", (250, 80 * n, 100))
        other = photo(tmp_path / "photos" / f"{n}-other.png", (90 * n, 30, 220))
        row = BenchmarkRow(
            name, f"a toy {n}", (reference,), (reference, other), (), f"s{n}", "object", "recontext"
        )
        made.append(row)
    return made
