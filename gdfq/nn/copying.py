"""Copies of networks that may have run."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gdfq.errors import InputError
from gdfq.nn.given import one_line


def copied(model: nn.Module, share: bool = False, name: str = "model") -> nn.Module:
    """A copy of ``model``, which may have run; with ``share``, of the same parameters.

    Raises:
        InputError: it cannot be copied; the message calls it ``name``.
    """
    # What a forward kept of its values is no leaf of autograd, and not copied otherwise.
    kept = [
        value
        for module in model.modules()
        for value in tree_leaves([v for k, v in module.__dict__.items() if k != "_modules"])
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    memo: dict[int, Any] = {id(value): value.detach().clone() for value in kept}
    if share:
        memo |= {id(parameter): parameter for parameter in model.parameters()}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(
            f"{name}: {type(model).__name__} cannot be copied (copy.deepcopy): {one_line(error)}"
        ) from error
