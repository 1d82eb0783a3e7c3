"""``gdfq recipes``: what can be quantized without writing a recipe."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from gdfq.cli._common import print_table, print_text
from gdfq.recipes import load_recipe, recipe_names


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="show this one, in full", show_default=False)
    ] = None,
) -> None:
    """List the recipes, or show one with every field."""
    if name is not None:
        print_text(load_recipe(name).to_toml().rstrip("\n"))
        return
    table = Table("recipe", "what it is")
    for recipe in map(load_recipe, recipe_names()):
        table.add_row(recipe.name, recipe.description)
    print_table(table)
