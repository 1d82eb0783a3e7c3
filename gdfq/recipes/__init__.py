"""Recipes: everything that decides a run, as TOML files with a schema."""

from gdfq.recipes.files import load_recipe, recipe_names
from gdfq.recipes.own import resolve_recipe
from gdfq.recipes.schema import Recipe

__all__ = ["Recipe", "load_recipe", "recipe_names", "resolve_recipe"]
