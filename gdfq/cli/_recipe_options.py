"""Fields of settings as options of a command."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Container, Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

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


def _option(key: str, definition: FieldInfo, panel: str | None) -> inspect.Parameter:
    """One option: ``--weight-bits`` for the field ``weight_bits``."""
    flag = f"--{key.replace('_', '-')}"
    if definition.annotation is bool:
        flag += f"/--no-{flag[2:]}"
    option = typer.Option(
        flag, help=definition.description, rich_help_panel=panel, show_default=False
    )
    kind: Any = Annotated[_option_type(definition.annotation) | None, option]
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)


def takes_fields(
    command: Callable[..., None], fields: Iterable[tuple[str | None, str, FieldInfo]]
) -> None:
    """Give ``command`` an option for each field, of a panel of the help, for its ``**options``.

    What is not given is None.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    more = [_option(key, definition, panel) for panel, key, definition in fields]
    command.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]


def takes_recipe_fields(command: Callable[..., None], without: Container[str] = ()) -> None:
    """Give ``command`` an option per recipe field, ``without`` some, for its ``**options``."""
    takes_fields(
        command,
        (
            (f"Recipe: {section}" if section else "Recipe", key, definition)
            for section, key, definition in fields()
            if key not in without
        ),
    )
