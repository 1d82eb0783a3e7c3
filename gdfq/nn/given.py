"""Networks as callers give them: without what is around them, checked."""

from __future__ import annotations

from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from gdfq.errors import InputError

_AROUND = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def plain_network(network: Any, name: str) -> nn.Module:
    """``network`` without what data parallelism, averaging and ``torch.compile`` put around it.

    Args:
        network: the caller's; not copied.
        name: of the argument, in messages.

    Raises:
        InputError: it is no ``nn.Module``; what is around it has hooks or a forward of its own; it
            is a script, or has one with parameters or buffers; a parameter or buffer has no shape
            yet.
    """
    while True:
        if not isinstance(network, nn.Module):
            raise InputError(f"{name}: must be an nn.Module, got {type(network).__name__}")
        around = next((kind for kind in _AROUND if isinstance(network, kind)), None)
        if around is None and "_orig_mod" not in network._modules:  # of torch.compile
            break
        if _adds(network, around):
            raise InputError(
                f"{name}: the {type(network).__name__} around the network has forward hooks or a "
                "forward of its own, which the student would not have; give the network in it, or "
                "register the hooks there"
            )
        network = network._modules["_orig_mod" if around is None else "module"]
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
    """Raise an InputError if a parameter or buffer of ``network``, the argument ``name``, has none.

    A network on the meta device can be converted, but not run or trained.
    """
    for path, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_meta:
            raise InputError(
                f"{name}: {path} is on the meta device, where it has no values: load the weights"
            )


def _adds(network: nn.Module, around: type[nn.Module] | None) -> bool:
    """Whether ``network``, an ``around`` or compiled, computes more than the network in it."""
    if network._forward_hooks or network._forward_pre_hooks:
        return True
    if around is None:  # a compiled network has its forward in the instance
        return False
    kind = type(network)
    return (
        "forward" in network.__dict__
        or kind.forward is not around.forward
        or kind.__call__ is not around.__call__
    )


def one_line(error: BaseException) -> str:
    """The first line of an error's message; where that is empty, its class and what raised it."""
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
    """What ``network`` answers to ``images``, which it works on a copy of if it changes them.

    From then on too: whoever calls ``network`` keeps their images.
    """
    before = images.clone()
    answer = network(images)
    if not images.is_meta and not torch.equal(images, before):  # which has no values
        network.register_forward_pre_hook(_copy_images)
        images.copy_(before)
    return answer


def _copy_images(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)


def require_logits(answer: Any, name: str) -> Tensor:
    """``answer``, which a network called ``name`` gave to images, if it is a tensor of logits.

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
    """What ``value`` is, for messages."""
    return "None" if value is None else f"a {type(value).__name__}"
