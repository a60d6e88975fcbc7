"""Draw held-out prompts of ToyBox with finished runs: reference, base, and each run; one prompt a column.

python docs/figures/readme_figure.py docs/images/toybox.png "naive 1:1=RUN" "Customized-GRPO=RUN" [--rows 24]
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from customized_grpo.data.examples import Example
from customized_grpo.generation.generate import draw
from customized_grpo.generation.opening import open_generator
from customized_grpo.pixels import to_pil
from customized_grpo.toybox.source import ToyBoxSource

EDGE, GAP, LABEL, CAPTION = 112, 6, 124, 74
LINE_CHARACTERS = 20
SEED = 0


def draw_rows(
    runs: Sequence[tuple[str, str]], rows: Sequence[Example]
) -> list[tuple[str, list[Image.Image]]]:
    """Return a labelled row of images for the references, the base and each run, from the same noise.

    Args:
        runs: Label and run folder; the base is that of the first.
        rows: The prompts.
    """
    sheet = [("reference", [to_pil(row.references[0]) for row in rows])]
    base = open_generator(runs[0][1], base=True)
    sheet.append(("base", [to_pil(image) for image in draw(base, rows, SEED, 1)]))
    for label, run in runs:
        tuned = open_generator(run)
        sheet.append((label, [to_pil(image) for image in draw(tuned, rows, SEED, 1)]))
    return sheet


def compose(sheet: Sequence[tuple[str, Sequence[Image.Image]]], prompts: Sequence[str]) -> Image.Image:
    """Return one image of labelled rows under the prompts."""
    size = (LABEL + len(prompts) * (EDGE + GAP), CAPTION + len(sheet) * (EDGE + GAP))
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for column, prompt in enumerate(prompts):
        text = textwrap.fill(prompt, LINE_CHARACTERS)
        place = (LABEL + column * (EDGE + GAP), 4)
        pen.multiline_text(place, text, "black", ImageFont.load_default(11), spacing=1)
    for number, (label, images) in enumerate(sheet):
        top = CAPTION + number * (EDGE + GAP)
        pen.text((8, top + EDGE // 2 - 6), label, "black", ImageFont.load_default(13))
        for column, image in enumerate(images):
            enlarged = image.resize((EDGE, EDGE), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (LABEL + column * (EDGE + GAP), top))
    return canvas


def main() -> None:
    """Read the arguments and write the image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUN")
    parser.add_argument("--first", type=int, default=0, help="number of the first held-out prompt")
    parser.add_argument("--rows", type=int, default=8, help="how many prompts, one after the other")
    arguments = parser.parse_args()
    runs = []
    for argument in arguments.runs:
        label, _, folder = argument.partition("=")
        runs.append((label, folder))
    source = ToyBoxSource(48, 2, 0, "held-out")  # as in the preset
    rows = [source[number] for number in range(arguments.first, arguments.first + arguments.rows)]
    with torch.no_grad():
        sheet = draw_rows(runs, rows)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    compose(sheet, [row.prompt for row in rows]).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
