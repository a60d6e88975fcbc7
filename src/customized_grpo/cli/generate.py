"""`cgrpo generate`: pictures from the tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.cli.common import Run, check_files, check_run
from customized_grpo.errors import UserError


def generate(
    run: Run,
    prompt: Annotated[str, typer.Option(help="What the picture should show.")],
    reference: Annotated[list[Path], typer.Option(help="Picture of the subject; may be repeated.")],
    mask: Annotated[
        list[Path] | None,
        typer.Option(help="Mask of the subject, white on black; one per reference, in the same order."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("generated"),
    count: Annotated[int, typer.Option(min=1, help="Number of pictures.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed; picture i depends on the seed and i only.")] = 0,
) -> None:
    """Generate pictures with the tuned model.

    For example: cgrpo generate runs/toybox --prompt "a toy at night" --reference toy.png
    """
    check_run(run)
    masks = mask or []
    check_files(reference, "--reference")
    check_files(masks, "--mask")
    if masks and len(masks) != len(reference):
        raise UserError(f"{len(masks)} --mask for {len(reference)} --reference; give one for each")

    from customized_grpo.generation.pictures import generate as draw

    for path in draw(run, prompt=prompt, references=reference, masks=masks, out=out, count=count, seed=seed):
        print(path)
