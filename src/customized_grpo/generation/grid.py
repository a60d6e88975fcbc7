"""One labelled image of many: a row per prompt, with references and drawn images side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from customized_grpo.generation.lettering import Font, lettered

SMALLEST = 224
"""Pixels of a cell's longer side; smaller ones are enlarged by a whole number."""
LARGEST = 512
"""Pixels of a cell's longer side; larger ones are reduced."""

GAP = 8
MARGIN = 20
HEADER = 15
CAPTION = 17
"""Font sizes of labels and of prompts, in pixels."""

INK = "#1c1c1c"
FAINT = "#6a6a6a"
PAPER = "white"


@dataclass(frozen=True)
class GridRow:
    """A prompt and its images.

    Attributes:
        prompt: Written above the images.
        images: As many as the grid has labels.
        elsewhere: File that has the prompt, named where no font can write all of it.
    """

    prompt: str
    images: Sequence[Image.Image]
    elsewhere: str = "its JSON file"


def compose_grid(labels: Sequence[str], rows: Sequence[GridRow]) -> Image.Image:
    """Return the grid: labels on top, each row's prompt above its images.

    Args:
        labels: Of the columns; equal ones side by side are written once.
        rows: At least one; all images of a column have one size.
    """
    cells = [_fit_all(row.images) for row in rows]
    widths = [cell.width for cell in cells[0]]
    height = max(_tallest(row) for row in cells)
    header = ImageFont.load_default(HEADER)
    inner = sum(widths) + GAP * (len(widths) - 1)
    prompts = [_caption(row, inner) for row in rows]
    line = round(CAPTION * 1.35)
    heights = [line * len(prompt.lines) + GAP + height for prompt in prompts]
    top = MARGIN + HEADER + 2 * GAP
    size = (inner + 2 * MARGIN, top + sum(heights) + MARGIN * len(rows))
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    lefts = [MARGIN + sum(widths[:column]) + GAP * column for column in range(len(widths))]
    for column, label in enumerate(labels):
        # Neighbours with one label have it once.
        if column == 0 or label != labels[column - 1]:
            pen.text((lefts[column], MARGIN), label, FAINT, header)
    for row, prompt, size_of_row in zip(cells, prompts, heights, strict=True):
        for number, text in enumerate(prompt.lines):
            pen.text((MARGIN, top + line * number), text, INK, prompt.font)
        for left, cell in zip(lefts, row, strict=True):
            sheet.paste(cell, (left, top + line * len(prompt.lines) + GAP))
        top += size_of_row + MARGIN
    return sheet


@dataclass(frozen=True)
class _Caption:
    """A prompt as it is written: its lines, and the font for them."""

    lines: list[str]
    font: Font


def _caption(row: GridRow, width: int) -> _Caption:
    text, font = lettered(row.prompt, CAPTION, row.elsewhere)
    return _Caption(_wrapped(text, width, font), font)


def _tallest(cells: Sequence[Image.Image]) -> int:
    return max(cell.height for cell in cells)


def _fit_all(images: Sequence[Image.Image]) -> list[Image.Image]:
    return [_fit(image) for image in images]


def _fit(image: Image.Image) -> Image.Image:
    """Enlarge by a whole number without smoothing, so that small pixels stay crisp; or reduce."""
    longer = max(image.size)
    if longer > LARGEST:
        scale = LARGEST / longer
        size = (round(image.width * scale), round(image.height * scale))
        return image.resize(size, Image.Resampling.LANCZOS)
    # Rounded up, to SMALLEST pixels at least.
    times = -(-SMALLEST // longer)
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _wrapped(text: str, width: int, font: Font) -> list[str]:
    """Cut a text into lines of at most `width` pixels, as far as its words allow."""
    characters = len(text)
    while characters > 1:
        lines = textwrap.wrap(text, characters)
        if max((font.getlength(line) for line in lines), default=0) <= width:
            return lines
        # letters differ in width, so only trying tells how many fit
        characters -= 1
    return [text]
