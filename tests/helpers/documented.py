"""The commands that the documentation tells its readers to run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Command:
    """A command line of `cgrpo`, or of `-m customized_grpo` behind a launcher.

    Attributes:
        page: Where it stands.
        words: Its words after the program's name.
        is_in_block: Whether it stands in a block of code; otherwise in a sentence.
    """

    page: Path
    words: list[str]
    is_in_block: bool

    def __str__(self) -> str:
        return f"{self.page.stem}: {self.text}"

    @property
    def text(self) -> str:
        """Return the words in one line."""
        return " ".join(self.words)


def commands(page: Path) -> list[Command]:
    """Return the commands in the code blocks of a page, and those in its sentences."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    sentences = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    quoted = re.findall(r"`((?:cgrpo (?!\.\.\.)|[^`\n]*-m customized_grpo )[^`]*)`", sentences)
    found: list[Command] = []
    for block in blocks:
        found += [Command(page, words, True) for words in _of_text(block)]
    for sentence in quoted:
        found += [Command(page, words, False) for words in _of_text(sentence)]
    return found


def _of_text(text: str) -> list[list[str]]:
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] | None = None
        before = ""
        for word in split(line):
            if word == "cgrpo" or (before == "-m" and word == "customized_grpo"):
                words = []
                found.append(words)
            elif word in END:
                words = None
            elif words is not None:
                words.append(word)
            before = word
    return [words for words in found if words]


def split(line: str) -> list[str]:
    """Return the words of a line of a shell, without its comment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


COMMANDS = [command for page in PAGES for command in commands(page)]
