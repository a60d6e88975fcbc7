"""`cgrpo init`: a first recipe of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.cli.common import Recipe
from customized_grpo.errors import UserError


def init(
    recipe: Recipe,
    data: Annotated[Path, typer.Argument(help="Folder of rows, written by cgrpo data convert.")],
    out: Annotated[Path, typer.Argument(help="The recipe to write; it must not exist.")],
) -> None:
    """Write a recipe of your own, with comments.

    It extends a preset, names the rows of a folder, and spells out the settings that are changed most, each
    with its meaning. Nothing is asked and nothing is overwritten.

    For example: cgrpo init flux2-klein-24gb data/dog dog.yaml
    """
    from customized_grpo.config import load_config
    from customized_grpo.config.starter import starter
    from customized_grpo.files import creating

    # by its ending a recipe is told from the name of a preset
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"{out}: a recipe is a YAML file", hint=f"Write {out}.yaml.")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is not a folder", hint="Create it first.")
    # `creating` refuses it as well, also when it comes in between, but less plainly
    if out.exists():
        raise UserError(f"{out} exists", hint="Choose another name, or remove it.")
    with creating(out) as draft:
        draft.write_text(starter(recipe, data, out), encoding="utf-8")
        load_config(str(draft))  # a recipe that is written can be trained
    print(f"written: {out}")
