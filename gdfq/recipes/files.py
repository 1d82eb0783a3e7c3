"""Recipes as TOML files, the package's and others."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path
from typing import Any

from gdfq.errors import InputError
from gdfq.recipes.schema import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Return the names of the package's recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Return a recipe of the package by its name, or any TOML file's by its path.

    A file of weights that the TOML file names is looked for beside it first.

    Raises:
        InputError: there is no such recipe, or it has an unknown key, a wrong type or an
            impossible value; the message names the key, the value and what is allowed.
    """
    path = FOLDER / f"{name_or_path}.toml"
    if name_or_path not in recipe_names():
        path = Path(name_or_path)
        if path.suffix != ".toml":
            raise InputError(
                f"recipe: {name_or_path!r} is none of {', '.join(recipe_names())}, "
                "and not a path to a .toml file"
            )
    recipe = parse_recipe(read_text(path, "recipe"), str(name_or_path))
    weights = path.parent / (recipe.teacher.weights or "")
    if weights.is_file():
        return recipe.with_options({"weights": str(weights.resolve())}, str(name_or_path))
    return recipe


def read_text(path: Path, name: str) -> str:
    """Return the text of a TOML file, in UTF-8 with or without a byte-order mark.

    Raises:
        InputError: the file cannot be read, or has another encoding; ``name`` starts the message.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = "UTF-16" if "\0" in text else ""
    except OSError as error:
        raise InputError(f"{name}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raw, at = error.object, error.start
        found = f"another encoding: line {raw.count(10, 0, at) + 1} has the byte {raw[at]:#x}"
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            found = "UTF-16"
    if found:
        raise InputError(f"{name}: {path} is not TOML: it is not UTF-8 but {found}")
    return text


def parse_recipe(text: str, source: str) -> Recipe:
    """Return the recipe in ``text``, a TOML file; errors name ``source``.

    Raises:
        InputError: see :func:`load_recipe`.
    """
    return Recipe.read(parse_toml(text, "recipe", source), source)


def parse_toml(text: str, name: str, source: str) -> dict[str, Any]:
    """Return the tables in ``text``, a TOML file.

    Raises:
        InputError: it is none; ``name`` starts the message, which names ``source``.
    """
    try:
        return tomllib.loads(text)
    except ValueError as error:  # also of an int with more digits than Python reads
        raise InputError(f"{name}: {source} is not TOML: {error}") from error
