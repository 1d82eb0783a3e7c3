"""The state of networks, optimizers and parts: tensors by name, loaded in place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gdfq.errors import InputError
from gdfq.training.parts.part import Part

if TYPE_CHECKING:
    from gdfq.training.update import Update


def digest(module: nn.Module) -> str:
    """Return the SHA-256 of everything in a network's ``state_dict``."""
    result = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        result.update(memoryview(content.numpy()))
    return result.hexdigest()


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Return the tensors that an optimizer keeps for each parameter, by the parameter's number.

    Empty before its first step. Learning rates are not among them, nor is any setting.
    """
    return {
        str(number): {
            name: value
            for name, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }
        for number, parameter in enumerate(optimizer_parameters(optimizer))
        if optimizer.state.get(parameter)
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Put :func:`optimizer_state` back: in place where the optimizer has such tensors already."""
    for number, parameter in enumerate(optimizer_parameters(optimizer)):
        given = state.get(str(number), {})
        kept = optimizer.state[parameter]
        for name in kept.keys() - given.keys():
            del kept[name]
        for name, value in given.items():
            if name not in kept:
                # The fused kernels go through memory in order: the layout must be the parameter's.
                like = parameter if value.shape == parameter.shape else value
                kept[name] = torch.empty_like(like, dtype=value.dtype, device=parameter.device)
            kept[name].copy_(value)
        if not kept:
            del optimizer.state[parameter]


def check_state(
    state: Mapping[str, Any],
    own: Mapping[str, Any],
    networks: Mapping[str, nn.Module],
    updates: Mapping[str, Update],
    parts: Mapping[str, Part],
) -> None:
    """Raise InputError if ``state`` does not fit a trainer, whose own state is ``own``."""
    missing = own.keys() - state.keys()
    if missing:
        raise InputError(f"state: has no {', '.join(sorted(missing))}")
    if state["device"] != own["device"]:
        raise InputError(
            f"state: was saved on {state['device']}, this trainer is on {own['device']}: "
            "their random numbers differ"
        )
    for name, network in networks.items():
        check_module_state(name, network, state[name])
    for name, update in updates.items():
        key = f"{name}_optimizer"
        check_optimizer_state(key, update.optimizer, state[key])
    check_parts_state(parts, state["parts"])


def check_module_state(name: str, module: nn.Module, state: Mapping[str, Any]) -> None:
    """Raise an InputError if ``state`` does not fit ``module``, called ``name``."""
    own = module.state_dict()
    for key in sorted(own.keys() ^ state.keys()):
        raise InputError(
            f"state: {name}.{key} is {'missing' if key in own else 'in no such network'}; "
            "a state fits the networks it was made with"
        )
    for key, value in own.items():
        if state[key].shape != value.shape:
            raise InputError(
                f"state: {name}.{key} has shape {tuple(state[key].shape)}, the trainer's has "
                f"{tuple(value.shape)}"
            )


def check_optimizer_state(
    name: str, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Raise an InputError if ``state`` does not fit ``optimizer``, called ``name``."""
    parameters = optimizer_parameters(optimizer)
    for number, values in state.items():
        if not number.isdigit() or int(number) >= len(parameters):
            raise InputError(f"state: {name} has no parameter {number}")
        shape = parameters[int(number)].shape
        for key, value in values.items():
            if value.dim() and value.shape != shape:
                raise InputError(
                    f"state: {name}.{number}.{key} has shape {tuple(value.shape)}, its parameter "
                    f"{tuple(shape)}"
                )


def check_parts_state(parts: Mapping[str, Part], state: Mapping[str, Any]) -> None:
    """Raise an InputError if ``state`` does not fit ``parts``, by name."""
    for name in sorted(parts.keys() ^ state.keys()):
        raise InputError(
            f"state: was saved {'without' if name in parts else 'with'} the part {name!r}"
        )
    for name, part in parts.items():
        for key in part.state_dict().keys() - state[name].keys():
            raise InputError(f"state: parts.{name}.{key} is missing")
        part.check_state(state[name])


def optimizer_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return what ``optimizer`` updates, group after group."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
