"""What the tests of adapters, conversion and checks share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from customized_grpo.data.adapters.base import Bad, Draft, Dropped, Item, Options
from customized_grpo.data.adapters.registry import LAYOUTS

Read = Callable[..., list[Item]]


@pytest.fixture
def read() -> Read:
    """Read a source; options by keyword."""

    def read(name: str, source: Path, **options: object) -> list[Item]:
        return list(LAYOUTS[name].read(source, Options(**options)))  # type: ignore[arg-type]

    return read


@pytest.fixture
def drafts(read: Read) -> Callable[..., list[Draft]]:
    """Read a source of which every row must be good."""

    def drafts(name: str, source: Path, **options: object) -> list[Draft]:
        items = read(name, source, **options)
        assert all(isinstance(item, Draft) for item in items), items
        return [item for item in items if isinstance(item, Draft)]

    return drafts


@pytest.fixture
def reasons(read: Read) -> Callable[..., list[str]]:
    """Read a source and return why its rows are bad or dropped."""

    def reasons(name: str, source: Path, **options: object) -> list[str]:
        found = []
        for item in read(name, source, **options):
            if isinstance(item, Bad):
                found.append(f"row {item.number}: {item.reason}")
            elif isinstance(item, Dropped):
                found.append(f"row {item.number} dropped: {item.filter}")
        return found

    return reasons
