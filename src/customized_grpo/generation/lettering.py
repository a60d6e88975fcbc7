"""Fonts for prompts in any script: the first on this machine that has every character."""

from __future__ import annotations

import importlib.util
import os
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeAlias

from PIL import ImageFont, features

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

PREFERRED = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "segoeui.ttf",
    "NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "msyh.ttc",
    "PingFang.ttc", "Arial Unicode.ttf", "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf",
)  # fmt: skip
"""File names of plain fonts, the widespread first; others come after them."""

MAX_TRIED = 300
"""Font files that are opened; a designer's machine has thousands."""

# no character and never one: a font draws its box for it
_NO_CHARACTER = "\U0010fffe"
_SHAPED = ((0x0590, 0x08FF), (0x0900, 0x109F), (0x1780, 0x17FF), (0xFB1D, 0xFDFF), (0xFE70, 0xFEFC))
"""Scripts that are unreadable letter by letter: right to left, joined, or stacked. They need Raqm."""


def lettered(text: str, size: int, elsewhere: str) -> tuple[str, Font]:
    """Return a text as it can be written, and the font to write it with.

    Args:
        text: Any text.
        size: Height of the font, in pixels.
        elsewhere: File that has the whole text: its name takes the place of what no font can write.
    """
    default = ImageFont.load_default(size)
    lines = " ".join(text.split())
    missing = _missing(default, lines)
    best: Font = default
    # Fonts are looked for only when the built-in one lacks a character.
    for file in _font_files() if missing else ():
        try:
            font = ImageFont.truetype(file, size)
        except (OSError, ValueError):
            continue
        lacks = _missing(font, lines)
        if len(lacks) < len(missing):
            best, missing = font, lacks
        if not missing:
            break
    if not missing:
        return lines, best
    written = "".join(" " if character in missing else character for character in lines)
    return f"{' '.join(written.split())} (prompt in {elsewhere})".strip(), best


def _missing(font: Font, text: str) -> set[str]:
    """Return the characters of a text that a font draws as a box, or that cannot be put side by side."""
    box = font.getmask(_NO_CHARACTER)
    empty = bytes(box)
    missing = set()
    for character in set(text) - {" "}:
        cannot_join = _needs_shaping(character) and not features.check("raqm")
        if cannot_join or not character.isprintable():
            missing.add(character)
        # A combining mark is drawn on its letter and has no shape of its own to compare.
        elif not unicodedata.combining(character):
            mask = font.getmask(character)
            if mask.size == box.size and bytes(mask) == empty:
                missing.add(character)
    return missing


def _needs_shaping(character: str) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in _SHAPED)


@cache
def _font_files() -> tuple[Path, ...]:
    """Return font files of this machine, the preferred ones first."""
    found: dict[str, Path] = {}
    for folder in _font_folders():
        for file in sorted(folder.rglob("*")):
            # macOS's LastResort has a picture for every character, and letters for none
            if file.suffix.lower() in (".ttf", ".ttc", ".otf") and "lastresort" not in file.name.lower():
                found.setdefault(file.name, file)
    preferred = [found[name] for name in PREFERRED if name in found]
    others = [file for name, file in found.items() if name not in PREFERRED]
    # Plain before bold, italic and monospaced, then by name: a machine always takes the same font.
    others.sort(key=lambda file: (any(word in file.name for word in ("Bold", "Italic", "Mono")), file.name))
    return (*preferred, *others)[:MAX_TRIED]


def _font_folders() -> Iterator[Path]:
    home = os.path.expanduser("~")
    places = ["/usr/share/fonts", "/usr/local/share/fonts", f"{home}/.fonts", f"{home}/.local/share/fonts"]
    if sys.platform == "darwin":
        places += ["/Library/Fonts", "/System/Library/Fonts", f"{home}/Library/Fonts"]
    elif sys.platform == "win32":
        places.append(os.path.join(os.environ.get("WINDIR", "C:/Windows"), "Fonts"))
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:  # it brings DejaVu along
        places.append(os.path.join(os.path.dirname(matplotlib.origin), "mpl-data/fonts/ttf"))
    for place in places:
        if os.path.isdir(place):
            yield Path(place)
