"""Figures and sections, which all pages are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Figure:
    """A titled chart.

    Attributes:
        title: Its heading.
        chart: The chart as inline SVG.
        caption: How to read it, in a sentence or two.
    """

    title: str
    chart: Markup
    caption: str


@dataclass(frozen=True)
class Section:
    """Figures under one heading.

    Attributes:
        title: The heading.
        lead: Text before the figures; may be empty.
        figures: The figures in reading order.
        wide: Whether each figure has the whole width of the page.
        finding: What the figures show, in words, between heading and lead; may be empty.
    """

    title: str
    lead: str
    figures: Sequence[Figure]
    wide: bool = False
    finding: str = ""


def existing(*figures: Figure | None) -> list[Figure]:
    """Return the figures that could be drawn."""
    return [figure for figure in figures if figure is not None]
