"""Watch a network's batch norms and quantizers while it evaluates images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gdfq.nn import QAct
from gdfq.nn.qact import activate
from gdfq.nn.weight import WeightQuantizer


class Moments:
    """Mean and biased variance per channel of all ``(N, C, ...)`` inputs of a module."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def hook(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Before the module is called."""
        x = args[0].detach().double()
        dims = [0, *range(2, x.dim())]
        self.count += x.numel() // x.shape[1]
        self.sum = self.sum + x.sum(dims)
        self.squares = self.squares + x.square().sum(dims)

    def mismatch(self, running_mean: Tensor, running_var: Tensor) -> float | None:
        """Return the mean over channels of the squared differences of mean and variance.

        ``mean((mean - running_mean)**2 + (var - running_var)**2)``; None without any input.
        """
        if not isinstance(self.sum, Tensor) or not isinstance(self.squares, Tensor):
            return None
        mean = self.sum / self.count
        var = self.squares / self.count - mean**2
        return _number(((mean - running_mean) ** 2 + (var - running_var) ** 2).mean())


class Loss:
    """Quantization's loss: energy of the values, of the error, and the share clipped."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0
        self.outside = self.count = 0

    def add(self, values: Tensor, quantized: Tensor) -> None:
        """Take ``values`` and what a quantizer made of them into account."""
        values, quantized = values.detach().double(), quantized.detach().double()
        self.signal += float(values.square().sum())
        self.noise += float((values - quantized).square().sum())
        self.count += values.numel()

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """After a :class:`~gdfq.nn.QAct` or :class:`WeightQuantizer` was called."""
        values = args[0]
        if isinstance(module, QAct):
            values = activate(values, module.act)
        if isinstance(module, QAct) and not module.dynamic_range:
            self.outside += int(((values < module.lo) | (values > module.hi)).sum())
        self.add(values, output)

    @property
    def sqnr(self) -> float | None:
        """``10 log10(signal / noise)`` in dB; None where either is 0."""
        if not self.signal > 0 or not self.noise > 0:
            return None
        return 10 * math.log10(self.signal / self.noise)

    @property
    def clipped(self) -> float | None:
        """Share of the values outside the quantizer's range; None without any."""
        return self.outside / self.count if self.count else None


@torch.no_grad()
def observe(
    network: nn.Module,
    batches: Sequence[Tensor],
    moments: Mapping[nn.Module, Moments],
    losses: Mapping[nn.Module, Loss] | None = None,
) -> None:
    """Run ``network`` on ``batches``; ``moments`` and ``losses`` get what its modules see."""
    with ExitStack() as hooks:
        for module, seen in moments.items():
            hooks.callback(module.register_forward_pre_hook(seen.hook).remove)
        for module, lost in (losses or {}).items():
            hooks.callback(module.register_forward_hook(lost.hook).remove)
        for images in batches:
            network(images)


def quantizers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that :class:`Loss` can watch in ``network``, by path."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, (QAct, WeightQuantizer))
    }


def _number(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
