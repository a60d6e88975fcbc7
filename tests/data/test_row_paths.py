"""Paths of rows are checked as `resolve_path` checks them, at the price of one look for plain files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from customized_grpo.data.row_checks import RowProblem, resolve_path
from customized_grpo.data.row_paths import RowPaths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files, folders and links that stay inside or lead out."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_text("secret")
    folder = tmp_path / "data"
    (folder / "dog").mkdir(parents=True)
    for name in ("1.png", "dog/2.png", "dog/two words.png", "dog/Ünal 狗.png"):
        (folder / name).write_text(name)
    (folder / "link.png").symlink_to(folder / "dog" / "2.png")
    (folder / "out.png").symlink_to(outside / "secret.png")
    (folder / "inside").symlink_to(folder / "dog")
    (folder / "leads_out").symlink_to(outside)
    (folder / "loop").symlink_to(folder / "loop")
    return folder


NAMES = [
    "1.png", "dog/2.png", "dog//2.png", "./dog/2.png", "dog/./2.png", "dog/two words.png", "dog/Ünal 狗.png",
    "link.png", "inside/2.png", "out.png", "leads_out/secret.png", "leads_out/none.png", "loop", "loop/a.png",
    "dog", "dog/", "none.png", "nowhere/1.png", "1.png/", "1.png/2.png", "..", "../outside/secret.png",
    "dog/../1.png", "dog/..", "/etc/hostname", "//1.png", "C:\\a.png", "C:a.png", "dog\\2.png", "..\\1.png",
    "1.png\0", "\0", "half\udc80.png", "a..b.png", "x" * 300,
]  # fmt: skip


def outcome(resolve: object, name: str) -> tuple[str, object]:
    try:
        return ("path", resolve("references", name))  # type: ignore[operator]
    except RowProblem as problem:
        return ("problem", str(problem))


@pytest.mark.parametrize("name", NAMES)
def test_paths_and_messages_are_those_of_the_full_check(folder: Path, name: str) -> None:
    paths = RowPaths(folder)
    expected = outcome(lambda key, text: resolve_path(folder, key, text), name)
    # the second time everything that can be known of its folder is known
    assert outcome(paths.resolve, name) == expected == outcome(paths.resolve, name)


def test_nothing_that_is_known_of_a_folder_lets_its_links_out(folder: Path) -> None:
    paths = RowPaths(folder)
    paths.resolve("target", "dog/2.png")
    (folder / "dog" / "new.png").symlink_to(folder.parent / "outside" / "secret.png")
    with pytest.raises(RowProblem, match="is a link that leaves"):
        paths.resolve("target", "dog/new.png")


def test_a_plain_file_in_a_known_folder_costs_one_look(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[object] = []
    paths = RowPaths(folder)
    paths.resolve("target", "dog/2.png")
    for name in ("lstat", "stat"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, **options: looks.append(a) or real(*a, **options))
    paths.resolve("target", "dog/two words.png")
    assert len(looks) == 1
