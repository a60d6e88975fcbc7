"""The pieces of inline SVG that every chart is made of.

Text reaches the page only through `Markup.format`, which escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup


def px(value: float) -> str:
    """Return a coordinate, to a tenth of a pixel."""
    # a page has thousands of coordinates, and no screen shows more than a tenth
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, words: str, css: str) -> Markup:
    """Return words at a point; the CSS classes say how they are anchored and coloured."""
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(css, px(x), px(y), words)


def chart(size: tuple[int, int], title: str, parts: Sequence[Markup], css: str = "chart") -> Markup:
    """Return the whole image; screen readers read the title in place of it."""
    head = (
        '<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}" xmlns="http://www.w3.org/2000/svg">'
    )
    return Markup(head).format(css, *size, title) + Markup("").join(parts) + Markup("</svg>")
