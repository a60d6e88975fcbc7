"""A chart of a page as a file of its own."""

from __future__ import annotations

import re

from customized_grpo.pages.page import TEMPLATES

SHEETS = ("charts.css", "comparison.css")
FONT = ".chart { font-family: system-ui, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif; }"


def standalone(chart: str) -> str:
    """Return an inline SVG as the content of a file: with the charts' style sheet, and opaque.

    Args:
        chart: The SVG, as `pages/plots` draws it.
    """
    style = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SHEETS) + FONT
    page = '<rect x="-10%" y="-10%" width="120%" height="120%" style="fill: var(--page)"/>'
    # a function, because a style sheet may hold backslashes, which a replacement text would interpret
    return re.sub(r"^<svg[^>]*>", lambda head: f"{head[0]}<style>{style}</style>{page}", chart) + "\n"
