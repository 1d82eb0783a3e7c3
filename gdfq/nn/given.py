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
        InputError: it is no ``nn.Module``, is a script, or a parameter or buffer has no values.
    """
    while True:
        if not isinstance(network, nn.Module):
            raise InputError(f"{name}: must be an nn.Module, got {type(network).__name__}")
        if isinstance(network, _AROUND):
            network = network.module
        elif "_orig_mod" in network._modules:  # of torch.compile
            network = network._modules["_orig_mod"]
        else:
            break
    if isinstance(network, torch.jit.ScriptModule):
        raise InputError(
            f"{name}: is a TorchScript module, whose layers cannot be replaced; give the nn.Module "
            "that it was made of"
        )
    for path, value in [*network.named_parameters(), *network.named_buffers()]:
        if is_lazy(value):
            raise InputError(f"{name}: {path} has no shape yet: call the network on an image first")
        if value.is_meta:
            raise InputError(
                f"{name}: {path} is on the meta device, where it has no values: load the weights"
            )
    return network


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
    if not torch.equal(images, before):
        network.register_forward_pre_hook(_copy_images)
        images.copy_(before)
    return answer


def _copy_images(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)


def require_logits(answer: Any, name: str) -> Tensor:
    """``answer``, which a network called ``name`` gave to images, if it is one tensor of logits.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(answer, Tensor):
        raise InputError(
            f"{name}: returns {kind_of(answer)} in evaluation mode, not one tensor of logits; "
            "switch its auxiliary outputs off or wrap it in a module that returns the logits alone"
        )
    return answer


def kind_of(value: Any) -> str:
    """What ``value`` is, for messages."""
    return "None" if value is None else f"a {type(value).__name__}"
