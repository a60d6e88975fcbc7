"""Draw the README's image from a finished run: reference, base and tuned model, one prompt a column.

python docs/figures/readme_figure.py runs/toybox-demo docs/images/toybox.png
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

EDGE, GAP, LABEL, CAPTION = 128, 6, 84, 74
LINE_CHARACTERS = 22


def draw(run: Path, columns: int) -> Image.Image:
    """Compose the image from the samples folder of a run."""
    samples = run / "samples"
    index = json.loads((samples / "index.json").read_text())
    last = max(index["iterations"])
    rows = [("reference", None), ("base", 0), ("tuned", last)]
    size = (LABEL + columns * (EDGE + GAP), CAPTION + len(rows) * (EDGE + GAP))
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, row in enumerate(index["rows"][:columns]):
        left = LABEL + column * (EDGE + GAP)
        pen.multiline_text((left, 4), textwrap.fill(row["prompt"], LINE_CHARACTERS), "black", font, spacing=1)
        for number, (_, iteration) in enumerate(rows):
            folder = f"iteration_{iteration:06d}" if iteration is not None else ""
            file = samples / folder / f"{column:02d}.png" if folder else samples / row["reference"]
            image = Image.open(file).resize((EDGE, EDGE), Image.Resampling.NEAREST)
            sheet.paste(image, (left, CAPTION + number * (EDGE + GAP)))
    for number, (name, _) in enumerate(rows):
        pen.text(
            (8, CAPTION + number * (EDGE + GAP) + EDGE // 2 - 6), name, "black", ImageFont.load_default(13)
        )
    return sheet


def main() -> None:
    """Read the arguments and write the image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--columns", type=int, default=7)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    draw(arguments.run, arguments.columns).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
