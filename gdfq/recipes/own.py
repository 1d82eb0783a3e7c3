"""A recipe for a network that there is none for."""

from __future__ import annotations

import re
from typing import Any

from gdfq.errors import InputError
from gdfq.recipes.schema import Recipe, Teacher, load_recipe, validate
from gdfq.sources import expected_image_size

LARGE = 64  # pixels; the paper's experiments have 32 and 224


def recipe_for_model(options: dict[str, Any]) -> Recipe:
    """The paper's constants for images of the size that ``options["model"]`` takes.

    Args:
        options: fields of a recipe by their names alone, as
            :meth:`gdfq.recipes.Recipe.with_options` takes them. Those of [teacher] are used.

    Raises:
        InputError: there is no model among them, or nothing says how large its images are.
    """
    if "model" not in options:
        raise InputError("recipe: name a recipe (see `gdfq recipes`), or a model to quantize")
    teacher = {key: value for key, value in options.items() if key in Teacher.model_fields}
    model = teacher["model"]
    size = expected_image_size(
        model, teacher.get("weights"), teacher.get("data", "none"), teacher.get("image_size")
    )
    base = load_recipe("imagenet-resnet18" if size >= LARGE else "cifar10-resnet20")
    tables = base.model_dump()
    tables["teacher"] = teacher
    tables["name"] = re.sub(r"[^a-z0-9.]+", "-", model.lower()).strip("-.")
    tables["description"] = f"{model}, {size}x{size}, with the constants of {base.name}"
    return validate(tables, "command line")
