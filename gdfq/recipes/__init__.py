"""Recipes: everything that decides a run, as TOML files with a schema."""

from gdfq.recipes.schema import Recipe, load_recipe, recipe_names

__all__ = ["Recipe", "load_recipe", "recipe_names"]
