"""`cgrpo config`: what a run would use, and what there is to set."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from customized_grpo.cli.common import Trust, table

app = typer.Typer(help="Show what a run would use, and what there is to set.", no_args_is_help=True)


class SchemaFormat(StrEnum):
    """How the schema is printed."""

    json = "json"
    markdown = "markdown"


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="Preset, or path of a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings that replace the recipe's."),
    ] = None,
    trust: Trust = None,
) -> None:
    """Check a recipe and print every value a run would use, as YAML."""
    from customized_grpo.config import dump_config, load_config

    print(dump_config(load_config(recipe, overrides or ())), end="")


@app.command()
def presets() -> None:
    """List the recipes that come with the package."""
    from customized_grpo.config.loading import preset_summaries

    print(table(list(preset_summaries().items())))


@app.command()
def schema(
    format: Annotated[SchemaFormat, typer.Option(help="JSON Schema, or a page to read.")] = SchemaFormat.json,
) -> None:
    """Print every knob with its type, range, default and meaning."""
    from customized_grpo.config.reference import markdown, schema_json

    print(schema_json() if format is SchemaFormat.json else markdown(), end="")
