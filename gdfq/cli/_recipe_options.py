"""Every field of a recipe as an option, for the commands that take a recipe."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Container
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from gdfq.recipes.schema import fields


def _option_type(annotation: Any) -> Any:
    """Return the command line's type of a recipe field's annotation."""
    if get_origin(annotation) is Annotated:
        return _option_type(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return str
    if get_origin(annotation) in (Union, types.UnionType):
        return _option_type(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return list[_option_type(get_args(annotation)[0])]  # type: ignore[misc]
    return annotation


def _recipe_options(without: Container[str]) -> list[inspect.Parameter]:
    """Return an option per recipe field: ``--weight-bits`` for ``quantization.weight_bits``."""
    parameters = []
    for section, key, definition in fields():
        if key in without:
            continue
        flag = f"--{key.replace('_', '-')}"
        if definition.annotation is bool:
            flag += f"/--no-{flag[2:]}"
        option = typer.Option(
            flag,
            help=definition.description,
            rich_help_panel=f"Recipe: {section}" if section else "Recipe",
            show_default=False,
        )
        kind: Any = Annotated[_option_type(definition.annotation) | None, option]
        parameters.append(
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        )
    return parameters


def takes_recipe_fields(
    command: Callable[..., None], without: Container[str] = ()
) -> Callable[..., None]:
    """Give ``command`` an option per recipe field, ``without`` some, for its ``**options``."""
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*own, *_recipe_options(without)]
    )
    return command
