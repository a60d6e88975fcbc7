"""Foreign text made inert before it is shown: prompts, file names, labels, answers of services.

Control characters can move the cursor, rename the window or hide lines; marks of direction can make a text
read as another one. They are shown as escapes, `\\x1b` and `\\u202e`.
"""

from __future__ import annotations

import re
import unicodedata

_NOT_PLAIN = re.compile(r"[^ -~]")
_JOINERS = "\u200c\u200d"  # between letters of Persian and Hindi, and in emoji of several parts
_CONTROL, _FORMAT, _SURROGATE, _LINE, _PARAGRAPH = "Cc", "Cf", "Cs", "Zl", "Zp"
_ESCAPED = {_CONTROL, _FORMAT, _SURROGATE, _LINE, _PARAGRAPH}


def printable(text: str, keep: str = "\n") -> str:
    """Return text with its control characters and marks of direction escaped.

    Args:
        text: The text.
        keep: Control characters that stay.
    """
    return _NOT_PLAIN.sub(lambda match: _shown(match[0], keep), text)


def one_line(text: str) -> str:
    """Return text in one line, with everything escaped that `printable` escapes."""
    return printable(" ".join(text.split()), keep="")


def _shown(character: str, keep: str) -> str:
    if character in keep or character in _JOINERS or unicodedata.category(character) not in _ESCAPED:
        return character
    return character.encode("unicode_escape").decode()
