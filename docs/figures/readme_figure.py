"""Draw the README's image from finished runs: reference, base, and what each run draws; one prompt a column.

python docs/figures/readme_figure.py docs/images/toybox.png "naive 1:1=RUN" "Customized-GRPO=RUN"
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

EDGE, GAP, LABEL, CAPTION = 128, 6, 124, 74
LINE_CHARACTERS = 22


def draw(runs: Sequence[tuple[str, Path]], columns: int) -> Image.Image:
    """Compose the image from the samples folders of runs that have the same held-out rows.

    Args:
        runs: Label and run folder; the reference and the base are those of the first.
        columns: Number of prompts.
    """
    first = runs[0][1] / "samples"
    prompts = json.loads((first / "index.json").read_text())["rows"][:columns]
    references = [first / row["reference"] for row in prompts]
    rows = [("reference", references), ("base", _samples(first, 0, len(prompts)))]
    for label, run in runs:
        samples = run / "samples"
        last = max(json.loads((samples / "index.json").read_text())["iterations"])
        rows.append((label, _samples(samples, last, len(prompts))))
    sheet = Image.new(
        "RGB", (LABEL + len(prompts) * (EDGE + GAP), CAPTION + len(rows) * (EDGE + GAP)), "white"
    )
    pen = ImageDraw.Draw(sheet)
    for column, row in enumerate(prompts):
        text = textwrap.fill(row["prompt"], LINE_CHARACTERS)
        pen.multiline_text(
            (LABEL + column * (EDGE + GAP), 4), text, "black", ImageFont.load_default(11), spacing=1
        )
    for number, (label, files) in enumerate(rows):
        top = CAPTION + number * (EDGE + GAP)
        pen.text((8, top + EDGE // 2 - 6), label, "black", ImageFont.load_default(13))
        for column, file in enumerate(files):
            image = Image.open(file).resize((EDGE, EDGE), Image.Resampling.NEAREST)
            sheet.paste(image, (LABEL + column * (EDGE + GAP), top))
    return sheet


def _samples(folder: Path, iteration: int, columns: int) -> list[Path]:
    return [folder / f"iteration_{iteration:06d}" / f"{column:02d}.png" for column in range(columns)]


def main() -> None:
    """Read the arguments and write the image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUN")
    parser.add_argument("--columns", type=int, default=7)
    arguments = parser.parse_args()
    runs = []
    for argument in arguments.runs:
        label, _, folder = argument.partition("=")
        runs.append((label, Path(folder)))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    draw(runs, arguments.columns).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
