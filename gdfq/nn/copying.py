"""Copying of networks, including those with cached values and hooks."""

from __future__ import annotations

import copy
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gdfq.errors import InputError
from gdfq.nn.given import one_line


def copied(model: nn.Module, share: bool = False, name: str = "model") -> nn.Module:
    """Copy ``model``; with ``share``, the copy has the same parameters.

    Hooks and instances' forwards whose closures refer to parts of ``model`` refer to the copy's
    parts in the copy.

    Raises:
        InputError: ``model``, the argument ``name``, cannot be copied.
    """
    # deepcopy refuses tensors that are not leaves of autograd, such as cached values.
    kept = [
        value
        for module in model.modules()
        for value in tree_leaves([v for k, v in module.__dict__.items() if k != "_modules"])
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in kept}
    if share:
        memo |= {id(parameter): parameter for parameter in model.parameters()}
    functions, cells = _bound_functions(model)
    memo |= functions
    try:
        made = copy.deepcopy(model, memo)
        for before, cell in cells:
            cell.cell_contents = copy.deepcopy(before.cell_contents, memo)
    except Exception as error:
        raise InputError(
            f"{name}: {type(model).__name__} cannot be copied (copy.deepcopy): {one_line(error)}"
        ) from error
    for module, twin in zip(model.modules(), made.modules(), strict=True):
        for name, value in module.__dict__.items():
            if isinstance(value, MethodType) and id(value.__func__) in functions:
                twin.__dict__[name] = MethodType(
                    functions[id(value.__func__)], twin.__dict__[name].__self__
                )
    return made


def _bound_functions(
    model: nn.Module,
) -> tuple[dict[int, FunctionType], list[tuple[CellType, CellType]]]:
    """Clone functions of ``model`` whose closures refer to parts of it.

    Returns:
        The clones by id of the original, and pairs of an original closure cell and its still empty
        counterpart.
    """
    parts = {*model.modules()}
    found: dict[int, FunctionType] = {}

    def look_at(value: Any) -> bool:
        """Whether ``value`` is or may hold a part of ``model``."""
        if isinstance(value, MethodType):
            return look_at(value.__self__) | look_at(value.__func__)
        if isinstance(value, FunctionType) and value.__closure__ and id(value) not in found:
            found[id(value)] = value
            for cell in value.__closure__:
                holds(cell)
        return id(value) in found or (isinstance(value, nn.Module) and value in parts)

    def holds(cell: CellType) -> bool:
        try:
            return any(list(map(look_at, tree_leaves(cell.cell_contents))))  # visit all
        except ValueError:  # an empty cell
            return False

    for module in parts:
        for value in tree_leaves([v for k, v in module.__dict__.items() if k != "_modules"]):
            look_at(value)
    made, cells = {}, []
    for key, function in [*found.items()]:
        closure = []
        for cell in function.__closure__ or ():
            closure.append(CellType() if holds(cell) else cell)
            if closure[-1] is not cell:
                cells.append((cell, closure[-1]))
        made[key] = FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            tuple(closure),
        )
        made[key].__kwdefaults__ = function.__kwdefaults__
        made[key].__dict__.update(function.__dict__)
    return made, cells
