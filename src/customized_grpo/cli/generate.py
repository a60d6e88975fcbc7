"""`cgrpo generate`: images from a run, or from any model that a run can start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.cli.common import (
    Trust,
    check_files,
    check_source,
    parse_checkpoint,
    parse_size,
    print_note,
)
from customized_grpo.errors import UserError
from customized_grpo.libraries import undisturbed_imports


def generate(
    source: Annotated[str, typer.Argument(help='Run, "toybox", folder in diffusers layout, or hub id.')],
    prompt: Annotated[list[str], typer.Option(help="What the image should show; repeatable.")],
    reference: Annotated[
        list[Path] | None, typer.Option(help="Image of the subject; repeatable. Without any: text to image.")
    ] = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option(help="Mask of the subject, white on black; one per reference, in the same order."),
    ] = None,
    lora: Annotated[
        Path | None, typer.Option(help="LoRA file or peft folder to put on a model that is not a run.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="N|best", help="Iteration of a run's checkpoint, or best; by default the newest."
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Use a run's model before tuning.")] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps; by default the recipe's or model card's.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Pixels, multiples of 16; by default the recipe's, else 1024x1024."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="model.KEY=VALUE", help="Another setting; repeatable."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images for each prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Image i depends on seed, prompt and i only.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("generated"),
    grid: Annotated[
        bool,
        typer.Option("--grid", help="Also write one labelled image of all, beside the base's."),
    ] = False,
    trust: Trust = None,
) -> None:
    """Generate images of a subject.

    For example: cgrpo generate runs/toybox --prompt "a toy at night" --reference toy.png --grid
    """
    check_source(source)
    masks = mask or []
    references = reference or []
    check_files(references, "--reference")
    check_files(masks, "--mask")
    # they belong together by their order alone
    if masks and len(masks) != len(references):
        raise UserError(
            f"{len(masks)} --mask for {len(references)} --reference", hint="Give one mask for each reference."
        )
    if not all(text.strip() for text in prompt):
        raise UserError("--prompt: a prompt is empty", hint="Say what the image should show.")
    for text in prompt:
        # Python's stand-ins for bytes of the command line that are not UTF-8
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"--prompt {text!r}: not UTF-8", hint="Type it in a terminal that uses UTF-8.")
    overrides = [*(settings or ()), *_size_settings(size)]
    if steps is not None:
        overrides.append(f"steps={steps}")

    with undisturbed_imports():
        from customized_grpo.generation.generate import Request
        from customized_grpo.generation.generate import generate as draw

    request = Request(prompt, references, masks, count, seed)
    paths = draw(
        source,
        request,
        out=out,
        settings=overrides,
        lora=lora,
        base=base,
        step=parse_checkpoint(checkpoint),
        grid=grid,
        on_note=print_note,
    )
    for path in paths:
        print(path)


def _size_settings(size: str | None) -> list[str]:
    if size is None:
        return []
    height, width = parse_size(size)
    return [f"model.height={height}", f"model.width={width}"]
