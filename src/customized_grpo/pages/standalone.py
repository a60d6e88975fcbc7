"""A chart of a page as a file of its own."""

from __future__ import annotations

import re

from customized_grpo.pages.page import TEMPLATES
from customized_grpo.pages.plots.frame import WIDTH

SHEETS = ("charts.css", "comparison.css")
FONT = ".chart { font-family: system-ui, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif; }"
# a file is no container: what is asked here is the width at which it is shown
SIZES = """
@media (min-width: 500px) { .chart text { font-size: 9px; } }
@media (min-width: 640px) { .chart text { font-size: 7px; } }
"""


def standalone(chart: str) -> str:
    """Return an inline SVG as the content of a file: with the charts' style sheet, and opaque.

    Args:
        chart: The SVG, as `pages/plots` draws it.
    """
    style = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SHEETS) + FONT
    if f'viewBox="0 0 {WIDTH} ' in chart:  # laid out for a phone, see charts.css
        style += SIZES
    page = '<rect x="-10%" y="-10%" width="120%" height="120%" style="fill: var(--page)"/>'
    # a function, because a style sheet may hold backslashes, which a replacement text would interpret
    return re.sub(r"^<svg[^>]*>", lambda head: f"{head[0]}<style>{style}</style>{page}", chart) + "\n"
