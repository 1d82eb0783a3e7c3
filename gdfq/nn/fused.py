"""Fused layers, created by :mod:`gdfq.convert.fusion`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gdfq.distributed import joined_world
from gdfq.nn.conv import QConv2d
from gdfq.nn.linear import QLinear
from gdfq.nn.qact import QAct
from gdfq.ops._checks import Ste
from gdfq.ops.bn_act_fake_quantize import bn_act_fake_quantize
from gdfq.ops.fake_quantize_minmax_list import fake_quantize_minmax_list
from gdfq.ops.observe_bn_act_fake_quantize import observe_bn_act_fake_quantize


class FusedBatchNormAct(nn.Module):
    """A frozen batch norm, an optional residual, an activation and its quantizer, in one pass.

    Holds the original layers, so that parameters and ranges are shared with the unfused network.

    Args:
        norm: with running statistics, in evaluation mode.
        quantizer: after the batch norm or the sum.
    """

    def __init__(self, norm: _BatchNorm, quantizer: QAct) -> None:
        super().__init__()
        self.norm = norm
        self.quantizer = quantizer

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Compute ``quantizer(norm(x) + residual)`` for ``x`` ``(N, C, ...)``."""
        norm, q = self.norm, self.quantizer
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if residual is not None and residual.dtype != x.dtype:
            # Autocast made the dtypes differ; PyTorch promotes the sum.
            return q(norm(x) + residual)
        if q.training and joined_world() is not None:
            # Quantization needs the range over all ranks first.
            return q(norm(x) if residual is None else norm(x) + residual)
        frozen = (norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
        if q.training:
            moving = q.moving_range(x)
            options = (q.act, residual, q.ste, q.zero_in_range)
            return observe_bn_act_fake_quantize(
                x, *frozen, *moving, q.act_bits, q.momentum, *options
            )
        q.require_range()
        return bn_act_fake_quantize(x, *frozen, q.lo, q.hi, q.act_bits, q.act, residual, q.ste)


class QuantizedWeights(nn.Module):
    """Quantizes the weights of many layers by one call.

    Args:
        layers: whose weights are quantized, all with the same :meth:`group`.
    """

    def __init__(self, layers: Sequence[QConv2d | QLinear]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.bits = [layer.weight_bits for layer in layers]
        self.ste, self.zero_in_range, _ = self.group(layers[0])
        self._kept: list[Tensor] | None = None

    @staticmethod
    def group(layer: QConv2d | QLinear) -> tuple[Ste, bool, torch.device]:
        """Return the properties that must be equal for layers quantized by one call."""
        return layer.ste, layer.zero_in_range, layer.weight.device

    def forward(self) -> list[Tensor]:
        """Return the quantized weight of each layer."""
        if self._kept is not None:
            return self._kept
        weights = [layer.weight for layer in self.layers]
        return fake_quantize_minmax_list(
            weights,  # type: ignore[arg-type]
            self.bits,
            self.ste,
            self.zero_in_range,
        )

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Quantize only once within, for forward passes between which no weight changes."""
        self._kept = self()
        try:
            yield
        finally:
            self._kept = None
