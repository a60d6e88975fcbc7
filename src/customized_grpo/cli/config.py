"""`cgrpo config`: the values that a run would use, the presets, and all settings."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from customized_grpo.cli.common import Overrides, Recipe, Trust, table

app = typer.Typer(help="Show the values of a recipe, the presets, and all settings.", no_args_is_help=True)


class SchemaFormat(StrEnum):
    """Formats of the schema."""

    json = "json"
    markdown = "markdown"


@app.command()
def show(
    recipe: Recipe,
    overrides: Overrides = None,
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
    format: Annotated[SchemaFormat, typer.Option(help="JSON Schema, or Markdown.")] = SchemaFormat.json,
) -> None:
    """Print every setting with its type, range, default and meaning."""
    from customized_grpo.config.reference import markdown, schema_json

    print(schema_json() if format is SchemaFormat.json else markdown(), end="")
