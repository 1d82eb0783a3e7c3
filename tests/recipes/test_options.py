"""The options that type checkers know are the recipe's fields.

``python -m tests.recipes.test_options`` writes them anew from the schema.
"""

import types
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin

from gdfq.recipes import options
from gdfq.recipes.schema import fields

HEAD = '''"""Fields of a recipe as keyword arguments, for type checkers and editors.

Written by ``python -m tests.recipes.test_options`` from :mod:`gdfq.recipes.schema`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict


class RecipeOptions(TypedDict, total=False):
    """Every field of a recipe by its name alone, see :mod:`gdfq.recipes.schema`.

    ``bits``: ``{"layer1.*": {"weight": 8, "act": 6}, ...}``, exceptions by glob pattern.
    """

    bits: Mapping[str, Mapping[str, int]]
'''
ARGUMENTS = {"model", "num_classes", "image_size"}  # of their own, of gdfq.quantize


def spelled(annotation):
    """``annotation`` as source code, without constraints and None."""
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind in (Annotated, Union, types.UnionType):
        return spelled(arguments[0])
    if kind is Literal:
        return "Literal[" + ", ".join(f'"{value}"' for value in arguments) + "]"
    if kind is tuple:
        return f"Sequence[{spelled(arguments[0])}]"
    return annotation.__name__


def source():
    text, last = HEAD, ""
    for section, key, field in fields():
        if section != last:
            text, last = f"{text}    # {section}\n", section
        if key not in ARGUMENTS:
            text += f"    {key}: {spelled(field.annotation)}\n"
    return text


def test_options_for_type_checkers_are_the_recipe_s_fields():
    assert Path(options.__file__).read_text() == source()


if __name__ == "__main__":
    Path(options.__file__).write_text(source())
