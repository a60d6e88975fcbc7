"""docs/operations.md says what the program says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
SOURCE = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))


def messages() -> list[str]:
    table = PAGE.split("## What failures look like")[1].split("## ")[0]
    return re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)


@pytest.mark.parametrize("message", messages())
def test_each_message_of_the_page_is_one_of_the_programs(message: str) -> None:
    """But for the words that change: `...`, and names and numbers in capitals."""
    parts = [part.strip(" :") for part in re.split(r"\.\.\.|\b[A-Z]+\b", message)]
    assert any(parts)
    for part in parts:
        assert part in SOURCE, part


def test_the_page_has_messages() -> None:
    assert len(messages()) >= 12
