"""What the pages have in common: the template engine, how numbers read, and how a page is written.

A page holds everything: no file beside it, nothing fetched, readable without JavaScript, on paper and in the
dark. The engine escapes whatever comes from outside (names, prompts, messages, settings), and a content
security policy in the page forbids any connection and any script but its own.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from customized_grpo.files import write_text

TEMPLATES = Path(__file__).parent / "templates"

MAX_SIDE = 256
"""Pixels; larger samples are scaled down and stored as JPEG, as a page of 1024-pixel PNGs would not open."""


def environment() -> Environment:
    """The template engine: escapes by default, and a name that a template misses is an error."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: Path, html: str) -> Path:
    """Write a page so that readers see the old or the new one, never half of it; returns its path."""
    return write_text(path, html)


def data_uri(image: Image.Image) -> str:
    """Return an RGB picture as a data URI: as PNG if it is small, else scaled down and as JPEG."""
    buffer = io.BytesIO()
    if max(image.size) <= MAX_SIDE:
        image.save(buffer, format="PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    small = image.copy()
    small.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    small.save(buffer, format="JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
