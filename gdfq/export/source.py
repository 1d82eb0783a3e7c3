"""What is exported: the student of a run folder or of a packed file."""

from __future__ import annotations

from pathlib import Path

from gdfq import packed
from gdfq.convert import QuantizedModel
from gdfq.errors import InputError
from gdfq.recipes import Recipe
from gdfq.run import load_run


def open_student(path: Path) -> tuple[Recipe, QuantizedModel]:
    """Recipe and student of a run folder, or of a packed file that names its recipe.

    Raises:
        InputError: ``path`` is neither.
    """
    if path.is_dir():
        recipe, _, student = load_run(path)
        return recipe, student
    header, _ = packed.read(path)
    recipe_in_file = header.parsed_recipe()
    if recipe_in_file is None:
        raise InputError(
            f"run: {path} names no recipe, so no images: use gdfq.export.export_onnx from Python"
        )
    return recipe_in_file, packed.load(path)
