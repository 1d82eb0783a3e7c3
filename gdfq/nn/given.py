"""Unwrapping and checking of the caller's networks."""

from __future__ import annotations

from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from gdfq.errors import InputError

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def plain_network(network: Any, name: str) -> nn.Module:
    """Remove wrappers of data parallelism, averaging and ``torch.compile`` from ``network``.

    Args:
        network: the caller's; not copied.
        name: of the argument, in messages.

    Raises:
        InputError: ``network`` is not an ``nn.Module``; a wrapper has hooks or a custom forward;
            a part is a TorchScript module; or a parameter or buffer is not initialized.
    """
    while True:
        if not isinstance(network, nn.Module):
            raise InputError(f"{name}: must be an nn.Module, got {type(network).__name__}")
        wrapper = next((kind for kind in _WRAPPERS if isinstance(network, kind)), None)
        if wrapper is None and "_orig_mod" not in network._modules:  # of torch.compile
            break
        if _is_customized(network, wrapper):
            raise InputError(
                f"{name}: the {type(network).__name__} around the network has forward hooks or a "
                "forward of its own, which the student would not have; give the network in it, or "
                "register the hooks there"
            )
        network = network._modules["_orig_mod" if wrapper is None else "module"]
    for path, module in network.named_modules():
        script = isinstance(module, torch.jit.ScriptModule)
        if script and (not path or [*module.parameters(), *module.buffers()]):
            raise InputError(
                f"{name}: {f'{path} ' if path else ''}is a TorchScript module, whose layers cannot "
                "be replaced; give the nn.Module that it was made of"
            )
    for path, value in [*network.named_parameters(), *network.named_buffers()]:
        if is_lazy(value):
            raise InputError(f"{name}: {path} has no shape yet: call the network on an image first")
    return network


def require_values(network: nn.Module, name: str) -> None:
    """Raise InputError if a parameter or buffer of the argument ``name`` is on the meta device.

    Such a network can be converted, but not run or trained.
    """
    for path, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_meta:
            raise InputError(
                f"{name}: {path} is on the meta device, where it has no values: load the weights"
            )


def _is_customized(network: nn.Module, wrapper: type[nn.Module] | None) -> bool:
    if network._forward_hooks or network._forward_pre_hooks:
        return True
    if wrapper is None:  # torch.compile sets forward in the instance
        return False
    kind = type(network)
    return (
        "forward" in network.__dict__
        or kind.forward is not wrapper.forward
        or kind.__call__ is not wrapper.__call__
    )


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message; without one, its class and origin."""
    lines = str(error).strip().splitlines()
    if lines:
        return lines[0]
    raised = [
        f" ({Path(frame.filename).name}:{frame.lineno}: `{frame.line}`)"
        for frame in extract_tb(error.__traceback__)
    ]
    return type(error).__name__ + (raised[-1] if raised else "")


@torch.no_grad()
def call_and_keep_images(network: nn.Module, images: Tensor) -> Any:
    """Return ``network(images)`` without changing ``images``.

    If ``network`` changes its input in place, a hook makes it work on copies from then on.
    """
    before = images.clone()
    answer = network(images)
    if not images.is_meta and not torch.equal(images, before):
        network.register_forward_pre_hook(_copy_images)
        images.copy_(before)
    return answer


def _copy_images(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)


def require_logits(answer: Any, name: str) -> Tensor:
    """Return ``answer``, the output of the network ``name``, if it is a tensor of logits.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(answer, Tensor):
        raise InputError(
            f"{name}: returns {kind_of(answer)} in evaluation mode, not one tensor of logits; "
            "switch its auxiliary outputs off or wrap it in a module that returns the logits alone"
        )
    if not answer.is_floating_point() or answer.layout != torch.strided:
        raise InputError(
            f"{name}: returns a tensor of {answer.dtype}, {answer.layout}, in evaluation mode; "
            "logits are real floating-point numbers in a dense (torch.strided) tensor"
        )
    return answer


def kind_of(value: Any) -> str:
    """Describe the type of ``value`` for messages."""
    return "None" if value is None else f"a {type(value).__name__}"
