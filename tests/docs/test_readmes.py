"""Every room of the package has a README, and the files and tests that pages name are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "customized_grpo"
FOLDERS = ("src", "tests", "measurements", "examples", "docs")
ROOMS = sorted(file.parent.name for file in PACKAGE.glob("*/__init__.py"))

OF_USERS = {"my_rewards.py", "my_rules.py", "my_family.py", "my_adapter.py"}
"""Files of examples, which users write."""


def below(pattern: str) -> Iterator[Path]:
    """Return the files of the repository with a name."""
    for folder in FOLDERS:
        yield from (ROOT / folder).rglob(pattern)


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(below("*.md"))]


def files_named(page: Path) -> set[str]:
    """Return the Python files in backticks and the targets of links inside the repository."""
    text = page.read_text(encoding="utf-8")
    quoted = re.findall(r"`([\w./-]+\.py)(?:`|::)", text)
    links = re.findall(r"\]\(([\w./-]+)[)#]", text)
    return {*quoted, *links} - OF_USERS


def exists(name: str, page: Path) -> bool:
    """Return whether a name is a path from the page, the root or the package, or the end of some path."""
    if any((folder / name).exists() for folder in (page.parent, ROOT, PACKAGE)):
        return True
    parts = Path(name).parts
    return any(path.parts[-len(parts) :] == parts for path in below(parts[-1]))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_a_readme(room: str) -> None:
    assert (PACKAGE / room / "README.md").is_file()


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_that_a_page_names_are_there(page: Path) -> None:
    assert [name for name in sorted(files_named(page)) if not exists(name, page)] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tests_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(r"`([\w./-]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))
    missing = []
    for file, test in named:
        if f"def {test}(" not in (ROOT / "tests" / file).read_text(encoding="utf-8"):
            missing.append(f"{file}::{test}")
    assert missing == []
