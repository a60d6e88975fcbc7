"""Parts that all pages share: the template engine, embedded images, and writing the file.

A page holds everything: no file beside it, nothing fetched, readable without JavaScript, on paper and in the
dark. The engine escapes all text from outside (names, prompts, messages, settings), and a content
security policy in the page forbids any connection and any script but its own.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from customized_grpo.files import write_text
from customized_grpo.pages.contents import Contents

TEMPLATES = Path(__file__).parent / "templates"

MAX_SIDE = 256
"""Pixels; larger samples become small JPEGs, because a page full of 1024-pixel PNGs would not open."""


@functools.cache
def environment(*folders: Path) -> Environment:
    """Return the template engine: it escapes by default, and a name that a template misses is an error.

    One for all pages of a process: it keeps the templates that it has compiled.

    Args:
        *folders: Where templates are looked for before those of this room.
    """
    return Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, *folders: Path, addressed: bool = True, **values: Any) -> str:
    """Return a page.

    Args:
        template: Name of its template, which makes its headings by `contents.heading`.
        *folders: Where templates are looked for before those of this room.
        addressed: Whether its sections have addresses, see `Contents`.
        **values: What the template shows, by the names that it uses.
    """
    contents = Contents(addressed=addressed)
    return environment(*folders).get_template(template).render(contents=contents, **values)


def write_page(path: Path, html: str) -> Path:
    """Write a page so that readers see the old or the new one, never half of it; return its path.

    Half a character, which JSON can hold and UTF-8 cannot, becomes a question mark.
    """
    return write_text(path, html.encode(errors="replace").decode())


def data_uri(image: Image.Image) -> str:
    """Return an RGB image as a data URI: as PNG if it is small, else scaled down and as JPEG."""
    buffer = io.BytesIO()
    if max(image.size) <= MAX_SIDE:
        image.save(buffer, format="PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    # `thumbnail` works in place, and the image belongs to the caller
    small = image.copy()
    small.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    small.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def evenly(values: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of the values, evenly spaced, always with the first and the last."""
    if len(values) <= count:
        return list(values)
    # an index, so that the last place is reached exactly
    last = len(values) - 1
    return [values[round(index * last / (count - 1))] for index in range(count)]
