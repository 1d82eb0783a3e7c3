"""Resolve what a caller gave, a recipe, a network or both, to a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gdfq.errors import InputError
from gdfq.recipes.files import load_recipe
from gdfq.recipes.schema import Recipe, Teacher
from gdfq.sources import expected_image_size

LARGE = 64  # pixels; the paper's experiments have 32 and 224
# Recipes whose constants a network without a recipe gets: for images below LARGE, and from it on.
DEFAULT = ("cifar10-resnet20", "imagenet-resnet18-quick")


def resolve_recipe(
    recipe: str | Path | Recipe | None,
    options: dict[str, Any],
    source: str = "command line",
) -> Recipe:
    """Return ``recipe`` with ``options`` in it; without one, that of the network they name.

    Args:
        recipe: a name, a path, or the recipe itself; only its constants are used if the options'
            model is in memory.
        options: fields of a recipe by their names alone, as
            :meth:`gdfq.recipes.Recipe.with_options` takes them.
        source: named in errors.

    Raises:
        InputError: there is no such recipe, an option does not fit, there is neither a recipe nor a
            model, or nothing says how large the model's images are.
    """
    base = load_recipe(str(recipe)) if isinstance(recipe, str | Path) else recipe
    if base is not None and not isinstance(base, Recipe):
        kind = type(recipe).__name__
        raise InputError(f"recipe: must be a name, a path or a Recipe, got a {kind}")
    if base is None or str(options.get("model")).startswith("memory:"):
        base = _recipe_for_model(options, base, source)
    return base.with_options(options, source)


def _recipe_for_model(options: dict[str, Any], base: Recipe | None, source: str) -> Recipe:
    if "model" not in options:
        raise InputError("recipe: name a recipe (see `gdfq recipes`), or a model to quantize")
    recipe = _with_teacher(base or load_recipe(DEFAULT[0]), options, source)
    spec = recipe.teacher
    size = expected_image_size(spec.model, spec.weights, spec.data, spec.image_size)
    if base is None and size >= LARGE:
        recipe = _with_teacher(load_recipe(DEFAULT[1]), options, source)
    description = recipe.description.replace(",", f", {size}x{size},", 1)
    return recipe.with_options({"description": description})


def _with_teacher(base: Recipe, options: dict[str, Any], source: str) -> Recipe:
    tables = base.model_dump()
    model = str(options["model"])
    tables["teacher"] = {k: v for k, v in options.items() if k in Teacher.model_fields}
    name = re.sub(r"[^a-z0-9.]+", "-", model.removeprefix("memory:").lower()).strip("-.")
    tables["name"] = name or "network"
    tables["description"] = f"{model}, with the constants of {base.name}"
    return Recipe.read(tables, source)
