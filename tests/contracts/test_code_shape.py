"""How densely the code may be packed."""

from __future__ import annotations

from pathlib import Path

import pytest

from code_shape import LONG_FILE, Shape, measure_folder

PACKAGE = Path(__file__).parents[2] / "src" / "customized_grpo"


@pytest.fixture(scope="module")
def shape() -> Shape:
    total = Shape()
    for room in measure_folder(PACKAGE).values():
        total.add(room)
    return total


def test_no_comprehension_is_nested(shape: Shape) -> None:
    assert shape.nested == []


def test_no_generator_is_unpacked_into_names(shape: Shape) -> None:
    assert shape.unpacked == []


def test_a_file_is_one_subject_and_not_long(shape: Shape) -> None:
    assert shape.long == [], f"over {LONG_FILE} lines"
