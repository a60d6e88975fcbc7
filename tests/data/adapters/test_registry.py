"""Every layout has a name, an adapter and a line in the manual."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from customized_grpo.data.adapters.base import Options
from customized_grpo.data.adapters.names import LayoutName
from customized_grpo.data.adapters.registry import LAYOUTS

MANUAL = Path(__file__).parents[3] / "docs" / "data.md"


def test_every_name_has_an_adapter_and_a_line_in_the_manual() -> None:
    assert set(LAYOUTS) == set(LayoutName)
    manual = MANUAL.read_text()
    for name, layout in LAYOUTS.items():
        assert f"| `{name}` |" in manual
        assert layout.title and layout.licence


@pytest.mark.parametrize("option", [field.name for field in fields(Options)])
def test_every_option_means_something_to_a_layout_and_is_in_the_manual(option: str) -> None:
    assert any(option in layout.takes for layout in LAYOUTS.values())
    assert f"--{option.replace('_', '-')}" in MANUAL.read_text()
