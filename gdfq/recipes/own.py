"""A recipe for a network that there is none for."""

from __future__ import annotations

import re
from typing import Any

from gdfq.errors import InputError
from gdfq.recipes.files import load_recipe
from gdfq.recipes.schema import Recipe, Teacher
from gdfq.sources import expected_image_size

LARGE = 64  # pixels; the paper's experiments have 32 and 224
# Whose constants images below LARGE get, and those from LARGE on.
PAPER = ("cifar10-resnet20", "imagenet-resnet18")
QUICK = ("fashion-mnist-resnet20", "imagenet-resnet18-quick")


def recipe_for_model(
    options: dict[str, Any],
    constants: tuple[str, str] = PAPER,
    base: Recipe | None = None,
    source: str = "command line",
) -> Recipe:
    """The recipe of the network ``options["model"]``, with constants from elsewhere.

    Args:
        options: fields of a recipe by their names alone, as
            :meth:`gdfq.recipes.Recipe.with_options` takes them. Those of [teacher] are used.
        constants: the recipes that have them, for small and for large images.
        base: the one that has them for any.
        source: named in errors.

    Raises:
        InputError: there is no model among them, or nothing says how large its images are.
    """
    if "model" not in options:
        raise InputError("recipe: name a recipe (see `gdfq recipes`), or a model to quantize")
    recipe = _with_teacher(base or load_recipe(constants[0]), options, source)
    spec = recipe.teacher
    size = expected_image_size(spec.model, spec.weights, spec.data, spec.image_size)
    if base is None and size >= LARGE:
        recipe = _with_teacher(load_recipe(constants[1]), options, source)
    told = recipe.description.replace(",", f", {size}x{size},", 1)
    return recipe.with_options({"description": told})


def _with_teacher(base: Recipe, options: dict[str, Any], source: str) -> Recipe:
    tables = base.model_dump()
    model = str(options["model"])
    tables["teacher"] = {k: v for k, v in options.items() if k in Teacher.model_fields}
    name = re.sub(r"[^a-z0-9.]+", "-", model.removeprefix("memory:").lower()).strip("-.")
    tables["name"] = name or "network"
    tables["description"] = f"{model}, with the constants of {base.name}"
    return Recipe.read(tables, source)
