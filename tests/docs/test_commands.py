"""Every `cgrpo` command of the documentation names verbs and options that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from customized_grpo.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("src/**/*.md"),
    }
)
END = {"|", "||", "&", "&&", ";", ">", "<", "(", ")"}


def commands(page: Path) -> list[list[str]]:
    """Return the words of every command in the code blocks of a page, and of those in its sentences."""
    text = page.read_text(encoding="utf-8")
    found = []
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    sentences = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for block in [*blocks, *re.findall(r"`(cgrpo (?!\.\.\.)[^`]*)`", sentences)]:
        for line in block.replace("\\\n", " ").splitlines():
            words: list[str] | None = None
            for word in split(line):
                if word == "cgrpo":
                    words = []
                    found.append(words)
                elif word in END:
                    words = None
                elif words is not None:
                    words.append(word)
    return found


def split(line: str) -> list[str]:
    """Return the words of a line of a shell, without its comment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def unknown(words: list[str]) -> list[str]:
    """Return the verb or the options of a command that do not exist."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands"):
        name = rest.pop(0) if rest else ""
        if name == "--help" or name == "":
            return []
        if name not in command.commands:
            return [name]
        command = command.commands[name]
    options = {"--help", "-h"}
    for parameter in command.params:
        options |= {*parameter.opts, *parameter.secondary_opts}
    return [word for word in rest if word.startswith("--") and word.partition("=")[0] not in options]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_what_exists(page: Path) -> None:
    wrong = [(words, unknown(words)) for words in commands(page) if unknown(words)]
    assert wrong == []


def test_there_are_commands_to_check() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 30
    assert unknown(["train", "toybox", "--nonsense"]) == ["--nonsense"] and unknown(["tarin"]) == ["tarin"]
