"""Every layout has a name, an adapter and a line in the manual."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from customized_grpo.data.adapters.base import Options
from customized_grpo.data.adapters.registry import LAYOUTS

MANUAL = Path(__file__).parents[3] / "docs" / "data.md"


def test_every_layout_is_known_by_its_name_and_has_a_line_in_the_manual() -> None:
    manual = MANUAL.read_text()
    for name, layout in LAYOUTS.items():
        assert layout.name == name and f"| `{name}` |" in manual
        assert layout.title and layout.licence


@pytest.mark.parametrize("option", [field.name for field in fields(Options)])
def test_every_option_means_something_to_a_layout_and_is_in_the_manual(option: str) -> None:
    assert any(option in layout.takes for layout in LAYOUTS.values())
    assert f"--{option.replace('_', '-')}" in MANUAL.read_text()
